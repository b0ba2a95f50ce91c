//! `make sim SEEDS=n`: random lives of the engine in the simulator, as many as asked for.
//!
//! `cargo test --profile sim --test seeds -- n [first]`. A bar on a terminal, else a line every ten
//! seconds; seeds in which something is wrong are printed at once, each with the command that replays
//! it. Ends with exit code 1 if there is any. Not one of the tests that `cargo test` runs by itself.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use spdk_bcache::sim::seeds::{Draw, live_all};

/// Seeds, unless told otherwise.
const SEEDS: u64 = 1000;
/// Characters of the bar.
const BAR: u64 = 30;

/// How far a run is.
struct Progress {
    seeds: u64,
    done: u64,
    failed: u64,
    began: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    fn new(seeds: u64) -> Progress {
        Progress {
            seeds,
            done: 0,
            failed: 0,
            began: Instant::now(),
            shown: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn line(&self) -> String {
        let took_s = self.began.elapsed().as_secs_f64().max(0.001);
        let left_s = took_s / self.done.max(1) as f64 * (self.seeds - self.done) as f64;
        let filled = (self.done * BAR / self.seeds.max(1)) as usize;
        format!(
            "[{:.<width$}] {}/{} seeds, {:.0} a minute, {} left, {} failed",
            "#".repeat(filled),
            self.done,
            self.seeds,
            self.done as f64 * 60.0 / took_s,
            clock(left_s as u64),
            self.failed,
            width = BAR as usize
        )
    }

    fn show(&mut self, now: bool) {
        let pause = match self.terminal {
            true => Duration::from_millis(200),
            false => Duration::from_secs(10),
        };
        if !now && self.shown.elapsed() < pause {
            return;
        }
        self.shown = Instant::now();
        let (line, mut err) = (self.line(), std::io::stderr());
        // Where nobody reads it, it need not be shown.
        let _ = match self.terminal {
            true => write!(err, "\r{line}\x1b[K"),
            false => writeln!(err, "{line}"),
        };
    }

    /// A line that stays.
    fn say(&mut self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}{text}");
    }
}

fn clock(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

fn main() {
    let numbers = std::env::args().skip(1).map(|text| match text.parse() {
        Ok(n) => n,
        Err(_) => {
            eprintln!("{text:?} is no number; usage: seeds [how many] [first]");
            std::process::exit(2);
        }
    });
    let numbers: Vec<u64> = numbers.collect();
    let seeds = numbers.first().copied().unwrap_or(SEEDS);
    let first = numbers.get(1).copied().unwrap_or(1);
    let progress = Mutex::new(Progress::new(seeds));
    let (report, failed) = live_all(Draw::mixed, first..first + seeds, |done| {
        let mut progress = progress.lock().unwrap_or_else(|e| e.into_inner());
        progress.done += 1;
        if let Err(failure) = done {
            progress.failed += 1;
            progress.say(&failure.to_string());
        }
        progress.show(false);
    });
    let mut progress = progress.into_inner().unwrap_or_else(|e| e.into_inner());
    progress.show(true);
    progress.say(&format!("\n{report:?}"));
    if !failed.is_empty() {
        std::process::exit(1);
    }
}
