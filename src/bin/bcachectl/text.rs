//! Output for eyes: aligned columns, sizes with units, a bar for what takes long.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use spdk_bcache::check::Progress;

/// How a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Writes rows under their heads, each column as wide as its widest cell.
///
/// # Errors
/// The output cannot be written.
pub fn table(out: &mut dyn Write, heads: &[(&str, Align)], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i));
        let widest = cells.map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).max(heads[i].0.chars().count())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let names: Vec<String> = heads.iter().map(|(name, _)| name.to_string()).collect();
    for row in std::iter::once(&names).chain(rows) {
        line(out, heads, &widths, row)?;
    }
    Ok(())
}

/// Writes one row; nothing stands behind its last word.
///
/// # Errors
/// The output cannot be written.
pub fn line(
    out: &mut dyn Write,
    heads: &[(&str, Align)],
    widths: &[usize],
    row: &[String],
) -> io::Result<()> {
    let cells = row.iter().zip(heads).zip(widths);
    let padded = cells.map(|((cell, (_, align)), width)| match align {
        Align::Left => format!("{cell:<width$}"),
        Align::Right => format!("{cell:>width$}"),
    });
    let text = padded.collect::<Vec<String>>().join("  ");
    writeln!(out, "{}", text.trim_end())
}

/// A size with a unit.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10) as usize;
    let scaled = bytes as f64 / (1u64 << (10 * power)) as f64;
    let digits = if scaled.fract() == 0.0 { 0 } else { 1 };
    format!("{scaled:.digits$} {}", UNITS[power - 1])
}

/// A bar on stderr, where that is a terminal.
pub struct Bar {
    shown: bool,
    last: Option<Instant>,
}

impl Bar {
    /// A bar that shows nothing yet.
    pub fn new() -> Bar {
        Bar {
            shown: io::stderr().is_terminal(),
            last: None,
        }
    }

    /// Draws it, a few times a second at most.
    pub fn draw(&mut self, progress: Progress) {
        let now = Instant::now();
        let rest = Duration::from_millis(100);
        if !self.shown || self.last.is_some_and(|last| now - last < rest) {
            return;
        }
        self.last = Some(now);
        eprint!("\r\x1b[K{}", bar(progress));
    }

    /// Takes it away.
    pub fn clear(&mut self) {
        if self.last.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn bar(progress: Progress) -> String {
    const WIDTH: u64 = 40;
    let Progress { what, done, total } = progress;
    if total == 0 {
        return format!("{what:<12} {done}");
    }
    let filled = (done.min(total) * WIDTH / total) as usize;
    let empty = WIDTH as usize - filled;
    let percent = done.min(total) * 100 / total;
    format!(
        "{what:<12} [{}{}] {percent:>3} %  {done} of {total}",
        "#".repeat(filled),
        ".".repeat(empty)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let sizes = [0, 1023, 1024, 1536, 1 << 30, u64::MAX].map(size);
        assert_eq!(
            sizes,
            ["0 B", "1023 B", "1 KiB", "1.5 KiB", "1 GiB", "16 EiB"]
        );
    }

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        let heads = [
            ("NAME", Align::Left),
            ("N", Align::Right),
            ("X", Align::Left),
        ];
        let rows = [
            vec!["a".to_string(), "100".to_string(), String::new()],
            vec!["longer".to_string(), "7".to_string(), "x".to_string()],
        ];
        table(&mut out, &heads, &rows).expect("memory");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text, "NAME      N  X\na       100\nlonger    7  x\n");
    }

    #[test]
    fn a_bar_never_runs_over() {
        for (done, total) in [(0, 0), (0, 5), (5, 5), (9, 5)] {
            let what = "btree";
            let text = bar(Progress { what, done, total });
            assert!(text.len() < 80, "{text}");
        }
    }
}
