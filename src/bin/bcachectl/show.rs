//! `bcachectl show`: what the superblocks say.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;
use spdk_bcache::check::show::{CachePart, Shown, show};

use super::Outcome;
use super::device::Device;
use super::text::size;

/// Shows each device; one that is bad does not keep the others from being shown.
///
/// # Errors
/// The output cannot be written.
pub fn run(devices: &[PathBuf], as_json: bool, out: &mut dyn Write) -> io::Result<Outcome> {
    let (mut worst, mut objects, mut first) = (Outcome::Fine, Vec::new(), true);
    for path in devices {
        let shown = Device::open(path).and_then(|device| show(&device).map_err(|e| e.to_string()));
        let outcome = match &shown {
            Ok(shown) if shown.error.is_none() => Outcome::Fine,
            Ok(_) => Outcome::Wrong,
            Err(why) => {
                eprintln!("bcachectl: {why}");
                Outcome::Unreadable
            }
        };
        worst = worst.max(outcome);
        match shown {
            Ok(shown) if as_json => objects.push(json!(shown)),
            Ok(shown) => {
                if !std::mem::replace(&mut first, false) {
                    writeln!(out)?;
                }
                print(&shown, out)?;
            }
            Err(why) => {
                let device = path.display().to_string();
                objects.push(json!({"device": device, "kind": "unreadable", "error": why}));
            }
        }
    }
    if as_json {
        serde_json::to_writer_pretty(&mut *out, &objects)?;
        writeln!(out)?;
    }
    Ok(worst)
}

/// Seconds of the epoch as a date and time of day, in UTC.
fn date(seconds: u32) -> String {
    if seconds == 0 {
        return "never".to_string();
    }
    let (days, time) = (i64::from(seconds / 86400), seconds % 86400);
    // Years are counted from March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!(
        "{:04}-{month:02}-{of_month:02} {:02}:{:02}:{:02} UTC",
        era * 400 + year + carry,
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

/// The lines of one device.
fn lines(shown: &Shown) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("kind", shown.kind.to_string()),
        ("size", size(shown.size_bytes)),
    ];
    if let Some(note) = &shown.note {
        lines.push(("note", note.clone()));
        return lines;
    }
    lines.extend([(
        "checksum",
        match shown.checksum_ok {
            true => format!("{} ok", shown.checksum),
            false => format!("{} WRONG", shown.checksum),
        },
    )]);
    if let Some(error) = &shown.error {
        let byte = shown.error_byte.unwrap_or_default();
        lines.push(("error", format!("{error} (byte {byte})")));
    }
    if let Some(common) = &shown.common {
        lines.extend([
            ("version", common.version.to_string()),
            ("uuid", common.uuid.clone()),
            ("set uuid", common.set_uuid.clone().unwrap_or("none".into())),
            ("label", common.label.clone()),
            ("sequence", common.seq.to_string()),
            ("flags", common.flags.clone()),
            ("block size", size(common.block_bytes)),
            ("last mount", date(common.last_mount)),
        ]);
        if let Some([compat, incompat, ro_compat]) = &common.features {
            let text = format!("compat {compat}, incompat {incompat}, ro_compat {ro_compat}");
            lines.push(("features", text));
        }
    }
    lines.extend(shown.cache.iter().flat_map(cache_lines));
    if let Some(backing) = &shown.backing {
        lines.extend([
            ("data begin at", size(backing.data_offset_bytes)),
            ("volume size", size(backing.volume_bytes)),
            ("cache mode", backing.cache_mode.to_string()),
            ("state", backing.state.to_string()),
        ]);
    }
    lines
}

/// The lines that only cache devices have.
fn cache_lines(cache: &CachePart) -> Vec<(&'static str, String)> {
    let journal = match (cache.journal_buckets.first(), cache.journal_buckets.last()) {
        (Some(first), Some(last)) => {
            let n = cache.journal_buckets.len();
            let bytes = n as u64 * cache.bucket_bytes;
            format!("{n} buckets, {first} to {last} ({})", size(bytes))
        }
        _ => "none yet".to_string(),
    };
    let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
    vec![
        ("bucket size", size(cache.bucket_bytes)),
        (
            "buckets",
            format!("{} ({})", cache.nbuckets, size(cache.cache_bytes)),
        ),
        ("first bucket", cache.first_bucket.to_string()),
        ("journal", journal),
        ("started", yes(cache.sync)),
        ("discard", yes(cache.discard)),
        ("replacement", cache.replacement.to_string()),
        (
            "device",
            format!(
                "{} of {} in the set",
                cache.nr_this_dev + 1,
                cache.nr_in_set
            ),
        ),
    ]
}

fn print(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", shown.device)?;
    for (name, value) in lines(shown) {
        let line = format!("  {name:<14} {value}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "never");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_709_251_199), "2024-02-29 23:59:59 UTC");
        assert_eq!(date(1_735_689_600), "2025-01-01 00:00:00 UTC");
        assert_eq!(date(u32::MAX), "2106-02-07 06:28:15 UTC");
    }
}
