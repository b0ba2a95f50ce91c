//! `bcachectl check`: what is wrong with a set.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use spdk_bcache::check::Source;
use spdk_bcache::check::report::{FINDINGS_MAX, Report, Summary};

use super::Outcome;
use super::device::Device;
use super::text::{Align, Bar, size, table};

/// Checks a set and prints what was found.
///
/// # Errors
/// The output cannot be written.
pub fn run(
    device: &Path,
    backings: &[PathBuf],
    as_json: bool,
    out: &mut dyn Write,
) -> io::Result<Outcome> {
    let report = match check(device, backings) {
        Ok(report) => report,
        Err(why) => {
            eprintln!("bcachectl: {why}");
            if as_json {
                serde_json::to_writer_pretty(&mut *out, &json!({"clean": false, "error": why}))?;
                writeln!(out)?;
            }
            return Ok(Outcome::Unreadable);
        }
    };
    if as_json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(match report.clean {
        true => Outcome::Fine,
        false if report.is_incomplete() => Outcome::Unreadable,
        false => Outcome::Wrong,
    })
}

fn check(device: &Path, backings: &[PathBuf]) -> Result<Report, String> {
    let cache = Device::open(device)?;
    let opened = backings.iter().map(|path| Device::open(path));
    let opened = opened.collect::<Result<Vec<Device>, String>>()?;
    let sources: Vec<&dyn Source> = opened.iter().map(|d| d as &dyn Source).collect();
    let mut bar = Bar::new();
    let checked = spdk_bcache::check::check(&cache, &sources, &mut |at| bar.draw(at));
    bar.clear();
    checked.map_err(|e| e.to_string())
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    if !report.summary.set.is_empty() {
        print_summary(&report.summary, out)?;
        writeln!(out)?;
    }
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    if report.clean {
        return writeln!(out, "nothing is wrong");
    }
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_string(), |n| n.to_string());
    let heads = [
        ("FINDING", Align::Left),
        ("DEVICE", Align::Left),
        ("BUCKET", Align::Right),
        ("BYTE", Align::Right),
        ("WHAT", Align::Left),
    ];
    let rows: Vec<Vec<String>> = report
        .findings
        .iter()
        .map(|finding| {
            vec![
                finding.kind.name(),
                finding.place.device.clone(),
                number(finding.place.bucket),
                number(finding.place.byte),
                finding.text.clone(),
            ]
        })
        .collect();
    table(out, &heads, &rows)?;
    writeln!(out)?;
    for (kind, &count) in report.counts.iter().filter(|kind| *kind.1 > FINDINGS_MAX) {
        writeln!(out, "of {} in all: {count}", kind.name())?;
    }
    writeln!(out, "findings: {}", report.counts.values().sum::<u64>())
}

fn print_summary(summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
    let buckets = &summary.buckets;
    writeln!(out, "set      {}", summary.set)?;
    writeln!(
        out,
        "journal  newest entry {}, to be replayed {} ({} keys)",
        summary.journal_newest, summary.journal_entries, summary.journal_keys
    )?;
    writeln!(
        out,
        "btree    {} nodes, depth {}, {} extents, {} stale",
        summary.nodes, summary.depth, summary.extents, summary.stale_extents
    )?;
    writeln!(
        out,
        "buckets  {} in all: {} metadata, {} dirty, {} clean, {} free",
        buckets.total, buckets.metadata, buckets.dirty, buckets.clean, buckets.free
    )?;
    if summary.volumes.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let heads = [
        ("VOLUME", Align::Right),
        ("KIND", Align::Left),
        ("UUID", Align::Left),
        ("EXTENTS", Align::Right),
        ("CACHED", Align::Right),
        ("DIRTY", Align::Right),
        ("BACKING", Align::Left),
        ("LABEL", Align::Left),
    ];
    let rows: Vec<Vec<String>> = summary
        .volumes
        .iter()
        .map(|volume| {
            vec![
                volume.inode.to_string(),
                volume.kind.to_string(),
                volume.uuid.clone(),
                volume.extents.to_string(),
                size(volume.cached_bytes),
                size(volume.dirty_bytes),
                volume.backing.clone().unwrap_or_else(|| "-".to_string()),
                volume.label.clone(),
            ]
        })
        .collect();
    table(out, &heads, &rows)
}
