//! What lives met: counters by name, and what must be among them.

use std::collections::BTreeMap;
use std::fmt;

/// How often each thing was met.
#[derive(Clone, Debug, Default)]
pub struct Met(BTreeMap<String, u64>);

impl Met {
    /// Something was met.
    pub fn note(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    /// How often something was met.
    pub fn count(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Adds what others met.
    pub fn add(&mut self, other: &Met) {
        for (what, n) in &other.0 {
            *self.0.entry(what.clone()).or_default() += n;
        }
    }

    /// What must be met and was not.
    pub fn missing(&self) -> Vec<String> {
        required()
            .into_iter()
            .filter(|what| self.count(what) == 0)
            .collect()
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, n) in &self.0 {
            writeln!(f, "{n:>9}  {what}")?;
        }
        Ok(())
    }
}

/// What some hundred runs must meet.
fn required() -> Vec<String> {
    let modes = ["writeback", "writethrough", "writearound", "none"];
    let kinds = ["Read", "Write", "Flush", "Unmap", "WriteZeroes"];
    let phases = ["at rest", "while it is attached", "while it is detached"];
    let mut all: Vec<String> = Vec::new();
    for mode in modes {
        for kind in kinds {
            for phase in phases {
                // Rare ones in the phases that are short.
                if phase == phases[0] || matches!(kind, "Read" | "Write") {
                    all.push(format!("{kind} in {mode} {phase}"));
                }
            }
        }
    }
    for end in ["Stop", "Kill", "Power", "Recovering"] {
        all.push(format!("a start after {end}"));
    }
    let others = [
        "a start without a device",
        "a shadow was recovered",
        "Linux was asked",
        "a journal that has wrapped",
        "a btree node was split",
        "gc was asked for",
        "more written than the cache holds",
        "a set that failed",
        "a durable write",
        "a reset",
        "a volume on a volume",
        "memory changed under a write",
        "memory longer than its I/O",
        "memory too short for its I/O",
        "I/O on several reactors",
        "writes that overlap",
        "a copy was refused",
        "a clean copy got a UUID of its own",
        "a dirty copy got no UUID of its own",
        "a backing device that is smaller",
        "transfers that waited at a queue",
        "all calls had ended",
        "a run that begins with a set of Linux",
        "a run that begins with many keys",
        "a run that begins with a worn set",
    ];
    all.extend(others.map(String::from));
    all
}
