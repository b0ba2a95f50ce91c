//! `bcachectl dump`: the structures of a cache device, row by row as they are read.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use spdk_bcache::check::dump::{self, JournalRow, KeyRow, PrioRow, UuidRow};
use spdk_bcache::check::{Cache, CannotCheck};

use super::device::Device;
use super::text::{Align, line};
use super::{Outcome, What};

/// Writes rows as they come: of a JSON array, or of a table whose columns have their widths from
/// the beginning.
struct Rows<'a> {
    out: &'a mut dyn Write,
    as_json: bool,
    heads: &'static [(&'static str, Align)],
    widths: &'static [usize],
    count: u64,
    result: io::Result<()>,
}

impl Rows<'_> {
    fn add<T: Serialize>(&mut self, row: &T, cells: impl FnOnce(&T) -> Vec<String>) {
        if self.result.is_ok() {
            self.result = self.write(row, cells);
        }
    }

    fn write<T: Serialize>(
        &mut self,
        row: &T,
        cells: impl FnOnce(&T) -> Vec<String>,
    ) -> io::Result<()> {
        self.count += 1;
        if !self.as_json {
            return line(self.out, self.heads, self.widths, &cells(row));
        }
        write!(self.out, "{}", if self.count == 1 { "[\n" } else { ",\n" })?;
        serde_json::to_writer(&mut *self.out, row).map_err(io::Error::from)
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.as_json {
            return Ok(());
        }
        let names: Vec<String> = self.heads.iter().map(|head| head.0.to_string()).collect();
        line(self.out, self.heads, self.widths, &names)
    }

    fn end(self) -> io::Result<()> {
        self.result?;
        match (self.as_json, self.count) {
            (false, _) => Ok(()),
            (true, 0) => writeln!(self.out, "[]"),
            (true, _) => writeln!(self.out, "\n]"),
        }
    }
}

use Align::{Left, Right};

const KEY_HEADS: &[(&str, Align)] = &[
    ("FROM", Left),
    ("BUCKET", Right),
    ("VOLUME", Right),
    ("START", Right),
    ("SECTORS", Right),
    ("AT", Right),
    ("GEN", Right),
    ("STATE", Left),
];
const KEY_WIDTHS: &[usize] = &[7, 10, 6, 14, 7, 14, 3, 7];

const JOURNAL_HEADS: &[(&str, Align)] = &[
    ("BUCKET", Right),
    ("BYTE", Right),
    ("ENTRY", Right),
    ("NEEDS", Right),
    ("KEYS", Right),
    ("LEVEL", Right),
    ("ROOT", Right),
    ("UUIDS", Right),
    ("PRIOS", Right),
    ("STATUS", Left),
];
const JOURNAL_WIDTHS: &[usize] = &[6, 14, 10, 10, 5, 5, 10, 10, 10, 6];

const PRIO_HEADS: &[(&str, Align)] = &[
    ("BUCKET", Right),
    ("PRIO", Right),
    ("GEN", Right),
    ("STANDS IN", Right),
];
const PRIO_WIDTHS: &[usize] = &[10, 5, 3, 10];

const UUID_HEADS: &[(&str, Align)] = &[
    ("VOLUME", Right),
    ("KIND", Left),
    ("UUID", Left),
    ("BYTES", Right),
    ("FIRST SEEN", Right),
    ("LAST SEEN", Right),
    ("GONE", Right),
    ("LABEL", Left),
];
const UUID_WIDTHS: &[usize] = &[6, 7, 36, 16, 10, 10, 10, 5];

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_string(), |v| v.to_string())
}

fn key_cells(row: &KeyRow) -> Vec<String> {
    let state = match (row.at, row.dirty) {
        (None, _) => "deleted",
        (_, true) => "dirty",
        (_, false) => "clean",
    };
    vec![
        row.from.to_string(),
        row.bucket.to_string(),
        row.inode.to_string(),
        row.start.to_string(),
        row.sectors.to_string(),
        or_dash(row.at),
        or_dash(row.generation),
        state.to_string(),
    ]
}

fn journal_cells(row: &JournalRow) -> Vec<String> {
    vec![
        row.bucket.to_string(),
        row.byte.to_string(),
        or_dash(row.seq),
        or_dash(row.last_seq),
        row.keys.to_string(),
        or_dash(row.level),
        or_dash(row.root_bucket),
        or_dash(row.uuid_bucket),
        or_dash(row.prio_bucket),
        row.status.clone(),
    ]
}

fn prio_cells(row: &PrioRow) -> Vec<String> {
    vec![
        row.bucket.to_string(),
        row.prio.to_string(),
        row.generation.to_string(),
        row.stands_in.to_string(),
    ]
}

fn uuid_cells(row: &UuidRow) -> Vec<String> {
    vec![
        row.inode.to_string(),
        row.kind.to_string(),
        row.uuid.clone(),
        row.bytes.to_string(),
        row.first_reg.to_string(),
        row.last_reg.to_string(),
        row.invalidated.to_string(),
        row.label.clone(),
    ]
}

/// Prints the rows of one structure. Rows before a damage are printed.
///
/// # Errors
/// The output cannot be written.
pub fn run(what: What, device: &Path, as_json: bool, out: &mut dyn Write) -> io::Result<Outcome> {
    let opened = Device::open(device);
    let opened = opened.as_ref().map_err(String::clone);
    let cache = opened.and_then(|device| Cache::open(device).map_err(|e| e.to_string()));
    let (heads, widths) = match what {
        What::Keys => (KEY_HEADS, KEY_WIDTHS),
        What::Journal => (JOURNAL_HEADS, JOURNAL_WIDTHS),
        What::Prios => (PRIO_HEADS, PRIO_WIDTHS),
        What::Uuids => (UUID_HEADS, UUID_WIDTHS),
    };
    let cache = match cache {
        Ok(cache) => cache,
        Err(why) => {
            eprintln!("bcachectl: {why}");
            return Ok(Outcome::Unreadable);
        }
    };
    let mut rows = Rows {
        out,
        as_json,
        heads,
        widths,
        count: 0,
        result: Ok(()),
    };
    rows.begin()?;
    let done = match what {
        What::Keys => dump::keys(&cache, &mut |row| rows.add(&row, key_cells)),
        What::Journal => dump::journal(&cache, &mut |row| rows.add(&row, journal_cells)),
        What::Prios => dump::prios(&cache, &mut |row| rows.add(&row, prio_cells)),
        What::Uuids => dump::uuids(&cache, &mut |row| rows.add(&row, uuid_cells)),
    };
    rows.end()?;
    match done {
        Ok(()) => Ok(Outcome::Fine),
        Err(error) => {
            eprintln!("bcachectl: {error}");
            Ok(match error {
                CannotCheck::Damaged(_) => Outcome::Wrong,
                _ => Outcome::Unreadable,
            })
        }
    }
}
