//! The `log` crate's records go to SPDK's log.
//!
//! SPDK has a level between warnings and information, the notice, which is the lowest that it
//! prints by default: `log`'s `Info` becomes a notice, `Debug` SPDK's information, `Trace` its
//! debugging. What is printed is decided by SPDK's levels (`-L`, `log_set_print_level`), at run
//! time.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::sys;

/// Bytes of a line, the rest is cut off: SPDK's own limit is 1024 with its prefix.
const LINE_BYTES_MAX: usize = 900;

struct SpdkLog;

static LOG: SpdkLog = SpdkLog;

/// Makes SPDK's log the destination of the `log` crate. Called again, it changes nothing.
pub fn install() {
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
}

fn spdk_level(level: Level) -> i32 {
    match level {
        Level::Error => 0,
        Level::Warn => 1,
        Level::Info => 2,
        Level::Debug | Level::Trace => 4,
    }
}

impl Log for SpdkLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // SAFETY: reads two integers; has no preconditions.
        spdk_level(metadata.level()) <= unsafe { sys::bcache_log_level() }
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = [0u8; LINE_BYTES_MAX];
        let mut rest = &mut line[..];
        // An error means that the line was cut off, which is what is wanted.
        let _ = write!(rest, "{}", record.args());
        let bytes = LINE_BYTES_MAX - rest.len();
        let file = record.file().unwrap_or("bcache");
        let file = file.rsplit('/').next().unwrap_or(file);
        // SAFETY: both texts are passed with their lengths and are only read during the call.
        unsafe {
            sys::bcache_log(
                spdk_level(record.level()),
                file.as_ptr().cast(),
                file.len(),
                record.line().unwrap_or(0) as i32,
                line.as_ptr().cast(),
                bytes,
            );
        }
    }

    fn flush(&self) {}
}
