//! Host I/O of the operator's world, and what the oracle says to its answers.
//!
//! Any number of I/Os overlap. One may fail only where a device was disturbed in this life, where its
//! volume was not shown when it began, or where a reset met it.

use serde_json::Value;

use super::plan::Feature;
use super::{Known, World};
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::sim::oracle::{Moment, ZERO, sector_of, values};
use crate::sim::stage::HostIo;

/// A host I/O in flight.
pub(super) struct Op {
    pub(super) kind: Kind,
    /// The volume's place in the list of known ones.
    pub(super) volume: usize,
    pub(super) start: u64,
    pub(super) sectors: u64,
    pub(super) begun: Moment,
    pub(super) issued_us: u64,
    durable: bool,
    /// Whether it may fail.
    excused: bool,
    is_reset: bool,
    /// The mode and phase of its volume when it began.
    met: String,
}

impl Op {
    pub(super) fn describe(&self) -> String {
        let Op {
            kind,
            volume,
            start,
            sectors,
            begun,
            ..
        } = self;
        match self.is_reset {
            true => format!("a reset of volume {volume}"),
            false => {
                format!("{kind:?} of {sectors} sectors at {start} of volume {volume} @{begun}")
            }
        }
    }
}

impl World {
    /// Begins a host I/O, or something else that a host does.
    pub(super) fn draw_io(&mut self) {
        if self.known.is_empty() || self.ops.len() >= self.plan.depth {
            return;
        }
        let volume = self.rng.below(self.known.len() as u64) as usize;
        if self.known[volume].gone {
            return;
        }
        if self.plan.has(Feature::Resets) && self.chance(40) {
            return self.reset(volume);
        }
        if self.plan.has(Feature::Memory) && self.chance(8) && self.change_memory() {
            return;
        }
        let (reads, flushes) = (self.plan.reads, self.plan.flushes);
        let kind = match self.rng.below(100) {
            n if n < reads => Kind::Read,
            n if n < reads + flushes => Kind::Flush,
            n if n < reads + flushes + 6 && self.plan.has(Feature::Clears) => {
                self.any(&[Kind::Unmap, Kind::WriteZeroes])
            }
            _ => Kind::Write,
        };
        let durable = kind == Kind::Write && self.plan.has(Feature::Fua) && self.chance(8);
        let (start, sectors) = match kind {
            Kind::Flush => (0, 0),
            _ => match self.place(volume) {
                Some(place) => place,
                None => return,
            },
        };
        self.issue(volume, kind, start, sectors, durable);
    }

    /// Where a host I/O goes: mostly a short one, often to where others go.
    fn place(&self, volume: usize) -> Option<(u64, u64)> {
        let block = u64::from(self.plan.block_sectors);
        let size = self.usable_sectors(volume);
        let most = (self.plan.io_sectors_max.min(size) / block).max(1);
        let most = 1 + self.rng.below(1 + self.rng.below(most));
        let sectors = (1 + self.rng.below(most)) * block;
        let room = match self.rng.below(100) < self.plan.hot {
            true => 256,
            false => size,
        };
        let room = room.min(size);
        if room < sectors {
            return None;
        }
        Some((
            self.rng.below((room - sectors) / block + 1) * block,
            sectors,
        ))
    }

    /// Sectors of a volume that hosts may use now.
    pub(super) fn usable_sectors(&self, volume: usize) -> u64 {
        let known: &Known = &self.known[volume];
        let shown = self.listed(volume).map_or(0, |listed| listed.sectors);
        let size = shown.min(self.oracle.sectors(known.nr));
        size.min(known.limit.unwrap_or(u64::MAX))
    }

    fn name_of(&self, volume: usize) -> (String, bool) {
        match self.listed(volume) {
            Some(listed) => (listed.name.clone(), listed.running),
            None => ("unlisted".into(), false),
        }
    }

    /// The mode and phase of a volume.
    fn met_of(&self, volume: usize) -> String {
        let Some(listed) = self.listed(volume) else {
            return String::new();
        };
        let mut under_way = self.calls.iter().filter(|call| call.names(&listed.name));
        let is = |call: &super::Call, what: &str| call.method.starts_with(what);
        let phase =
            match under_way.find(|c| is(c, "bdev_bcache_attach") || is(c, "bdev_bcache_detach")) {
                Some(call) if is(call, "bdev_bcache_attach") => "while it is attached",
                Some(_) => "while it is detached",
                None => "at rest",
            };
        format!(" in {} {phase}", listed.mode)
    }

    pub(super) fn issue(
        &mut self,
        volume: usize,
        kind: Kind,
        start: u64,
        sectors: u64,
        durable: bool,
    ) {
        let (name, shown) = self.name_of(volume);
        let nr = self.known[volume].nr;
        let mut memory = Vec::new();
        let begun = match kind {
            Kind::Read => {
                memory.resize(sectors as usize * 512, 0xee);
                self.oracle.read_begins()
            }
            Kind::Write => {
                memory = self.new_data(nr, start, sectors);
                let value = self.next_value - 1;
                self.oracle.write_begins(nr, start, sectors, value, false)
            }
            Kind::Flush => self.oracle.tick(),
            Kind::Unmap => self.oracle.write_begins(nr, start, sectors, ZERO, true),
            Kind::WriteZeroes => self.oracle.write_begins(nr, start, sectors, ZERO, false),
        };
        let overlaps = |op: &Op| {
            op.volume == volume
                && op.kind == kind
                && op.start < start + sectors
                && start < op.start + op.sectors
        };
        if kind == Kind::Write && self.ops.values().any(overlaps) {
            self.met.note("writes that overlap");
        }
        let io = HostIo {
            kind,
            start,
            sectors,
            memory,
            durable,
        };
        let met = self.met_of(volume);
        let tag = self.m().host.stage.issue(&name, io);
        let value = self.next_value - 1;
        self.note(|| {
            let fua = if durable { " FUA" } else { "" };
            let value = if kind == Kind::Write {
                format!(" value {value}")
            } else {
                String::new()
            };
            format!("io {tag} {kind:?}{fua} {name} (v{nr}) {start}+{sectors}{value} @{begun}")
        });
        if self.plan.reactors > 1 {
            self.met.note("I/O on several reactors");
        }
        let op = Op {
            kind,
            volume,
            start,
            sectors,
            begun,
            issued_us: self.now(),
            durable,
            excused: !shown,
            is_reset: false,
            met,
        };
        self.ops.insert(tag, op);
    }

    fn new_data(&mut self, nr: usize, start: u64, sectors: u64) -> Vec<u8> {
        let value = self.next_value;
        self.next_value += 1;
        let mut memory = Vec::with_capacity(sectors as usize * 512);
        for s in start..start + sectors {
            memory.extend_from_slice(&sector_of(nr, s, value));
        }
        self.written += memory.len() as u64;
        memory
    }

    fn reset(&mut self, volume: usize) {
        let (name, _) = self.name_of(volume);
        let tag = self.m().host.stage.reset(&name);
        self.note(|| format!("io {tag} reset of {name}"));
        for op in self.ops.values_mut().filter(|op| op.volume == volume) {
            op.excused = true;
        }
        let op = Op {
            kind: Kind::Flush,
            volume,
            start: 0,
            sectors: 0,
            begun: 0,
            issued_us: self.now(),
            durable: false,
            excused: true,
            is_reset: true,
            met: String::new(),
        };
        self.ops.insert(tag, op);
    }

    /// The host changes the memory of a write that is under way; false when there is none.
    fn change_memory(&mut self) -> bool {
        let writes = self.ops.iter().filter(|(_, op)| op.kind == Kind::Write);
        let writes: Vec<u64> = writes.map(|(&tag, _)| tag).collect();
        if writes.is_empty() {
            return false;
        }
        let tag = self.any(&writes);
        let op = &self.ops[&tag];
        let (nr, start, sectors, begun) =
            (self.known[op.volume].nr, op.start, op.sectors, op.begun);
        let memory = self.new_data(nr, start, sectors);
        if !self.m().host.stage.change_memory(tag, &memory) {
            return false;
        }
        let value = self.next_value - 1;
        self.note(|| format!("io {tag} has other memory, value {value}"));
        self.oracle.write_changes(nr, start, sectors, begun, value);
        self.met.note("memory changed under a write");
        true
    }

    /// Takes the answers that hosts have got.
    pub(super) fn take_answers(&mut self) -> Result<(), String> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let stage = &self.m().host.stage;
        let ended = self.ops.keys().filter(|&&tag| stage.has_ended(tag));
        let ended: Vec<u64> = ended.copied().collect();
        for tag in ended {
            let answer = self.m().host.stage.ended(tag);
            let (outcome, data) = answer.expect("it has ended");
            let op = self.ops.remove(&tag).expect("an I/O of this world");
            self.answered(tag, &op, outcome, &data)
                .map_err(|why| format!("io {tag}, {}: {why}", op.describe()))?;
        }
        Ok(())
    }

    fn answered(&mut self, tag: u64, op: &Op, outcome: Outcome, data: &[u8]) -> Result<(), String> {
        let ok = outcome == Outcome::Success;
        let (now_us, nr) = (self.now(), self.known[op.volume].nr);
        self.note(|| {
            let seen = match op.kind {
                Kind::Read => format!(" {:?}", values(data)),
                _ => String::new(),
            };
            format!(
                "io {tag} {outcome:?} after {} us{seen}",
                now_us - op.issued_us
            )
        });
        if op.is_reset {
            self.met.note("a reset");
            return Ok(());
        }
        if ok && !op.met.is_empty() {
            self.met.note(format!("{:?}{}", op.kind, op.met));
        }
        if !ok && !op.excused && !self.disturbed {
            return Err(format!("failed: {outcome:?}"));
        }
        match op.kind {
            Kind::Read => self
                .oracle
                .read_ends(nr, op.start, op.begun, ok.then_some(data)),
            Kind::Flush => {
                if ok {
                    self.known[op.volume].in_doubt &= self.known[op.volume].device.is_none();
                    self.oracle.flushed(nr, op.begun);
                }
                Ok(())
            }
            Kind::Write if ok && op.durable => {
                self.met.note("a durable write");
                self.oracle
                    .durable_write_ends(nr, op.start, op.sectors, op.begun);
                Ok(())
            }
            _ => {
                self.oracle
                    .write_ends(nr, op.start, op.sectors, op.begun, ok);
                Ok(())
            }
        }
    }

    /// Reads a whole volume.
    pub(super) fn read_all(&mut self, volume: usize) -> Result<(), String> {
        let (size, nr) = (self.usable_sectors(volume), self.known[volume].nr);
        let end = size.min(self.oracle.sectors(nr));
        let block = u64::from(self.plan.block_sectors);
        let mut at = 0;
        while at < end {
            let sectors = ((1 + self.rng.below(256 / block)) * block).min(end - at);
            self.issue(volume, Kind::Read, at, sectors, false);
            at += sectors;
            while self.ops.len() >= 16 {
                self.turn()?;
            }
        }
        self.until("a read", |world| world.ops.is_empty())
    }

    /// Whether a JSON answer says true.
    pub(super) fn is_true(value: &Value) -> bool {
        *value == Value::Bool(true)
    }
}
