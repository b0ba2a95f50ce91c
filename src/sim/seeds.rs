//! Many seeds at once: on all processors, each by itself, with what went wrong and how to see it again.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::Mutex;

use super::plan::{Plan, Report};
use super::world::World;

/// How the plan of a seed is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Anything.
    Any,
    /// A deep tree.
    Deep,
    /// Generations that wrap.
    Churn,
    /// Devices that fail.
    Ill,
    /// A cache device that lies.
    Lying,
}

impl Draw {
    /// Its name, as `SIM_PLAN` has it.
    pub fn name(self) -> &'static str {
        match self {
            Draw::Any => "any",
            Draw::Deep => "deep",
            Draw::Churn => "churn",
            Draw::Ill => "ill",
            Draw::Lying => "lying",
        }
    }

    /// What a long run draws for a seed: the costly ones seldom.
    pub fn mixed(seed: u64) -> Draw {
        match seed {
            n if n % 200 == 0 => Draw::Deep,
            n if n % 50 == 0 => Draw::Churn,
            n if n % 4 == 0 => Draw::Ill,
            n if n % 10 == 1 => Draw::Lying,
            _ => Draw::Any,
        }
    }

    /// The plan of a seed.
    pub fn plan(self, seed: u64) -> Plan {
        match self {
            Draw::Any => Plan::from_seed(seed),
            Draw::Deep => Plan::deep(seed),
            Draw::Churn => Plan::churn(seed),
            Draw::Ill => Plan::ill(seed),
            Draw::Lying => Plan::lying(seed),
        }
    }
}

/// A seed in which something is wrong. Shown with the command that shows it again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How its plan was drawn.
    pub draw: Draw,
    /// The seed.
    pub seed: u64,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, seed) = (self.draw.name(), self.seed);
        write!(
            f,
            "seed {seed}: {}\n  replay: SIM_PLAN={name} SIM_SEED={seed} cargo test --test sim",
            self.why
        )
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => format!("panic: {text}"),
        Err(panic) => format!("panic: {:?}", panic.downcast::<&str>().ok()),
    }
}

/// Does something with each of some numbers, on as many threads as there are processors; `take` gets
/// the results, one at a time.
pub(super) fn each<T>(
    numbers: impl Iterator<Item = u64> + Send,
    work: impl Fn(u64) -> T + Sync,
    take: impl FnMut(T) + Send,
) {
    let (numbers, take) = (Mutex::new(numbers), Mutex::new(take));
    let next = || numbers.lock().unwrap_or_else(|e| e.into_inner()).next();
    let run = || {
        while let Some(number) = next() {
            let done = work(number);
            take.lock().unwrap_or_else(|e| e.into_inner())(done);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(run);
        }
    });
}

/// Lives the lives of one seed.
///
/// # Errors
/// What is wrong; a panic is, too.
pub fn live(draw: Draw, seed: u64) -> Result<Report, Failure> {
    let run = catch_unwind(|| World::new(seed, draw.plan(seed)).run());
    let done = run.unwrap_or_else(|panic| Err(panic_text(panic)));
    done.map_err(|why| Failure { draw, seed, why })
}

/// Lives all seeds of a range on as many threads as there are processors; `note` is told of each as
/// it ends.
pub fn live_all(
    draw: impl Fn(u64) -> Draw + Sync,
    seeds: Range<u64>,
    note: impl Fn(&Result<Report, Failure>) + Sync,
) -> (Report, Vec<Failure>) {
    let (mut report, mut failed) = (Report::default(), Vec::new());
    let one = |seed| {
        let done = live(draw(seed), seed);
        note(&done);
        done
    };
    each(seeds, one, |done| match done {
        Ok(lived) => report += lived,
        Err(failure) => failed.push(failure),
    });
    (report, failed)
}
