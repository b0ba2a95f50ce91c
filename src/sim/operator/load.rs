//! Host I/O of the operator's world, and what the oracle says to its answers.
//!
//! Any number of I/Os overlap. One may fail only where a device was disturbed in this life, where its
//! volume was not shown when it began, or where a reset met it.

use serde_json::Value;

use super::plan::Feature;
use super::{Floor, World};
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::rng::Rng;
use crate::sim::oracle::{Io, ZERO, data_of, values};
use crate::sim::stage::HostIo;
use crate::units::SECTOR_BYTES;

/// What stands in memory that is no I/O's.
const FILLER: u8 = 0x5a;

/// A host I/O in flight.
pub(super) struct Op {
    pub(super) io: Io,
    pub(super) issued_us: u64,
    durable: bool,
    /// Whether it may fail.
    excused: bool,
    is_reset: bool,
    /// Its memory is too short.
    must_fail: bool,
    /// The oracle knows of it.
    is_followed: bool,
    /// The mode and phase of its volume when it began.
    met: String,
}

impl Op {
    /// What it does to its volume is not followed any more.
    pub(super) fn is_lost(&mut self) {
        (self.is_followed, self.excused) = (false, true);
    }

    pub(super) fn describe(&self) -> String {
        let Io {
            kind,
            volume,
            start,
            sectors,
            begun,
        } = self.io;
        match self.is_reset {
            true => format!("a reset of volume {volume}"),
            false => {
                format!("{kind:?} of {sectors} sectors at {start} of volume {volume} @{begun}")
            }
        }
    }
}

/// A host I/O on a volume whose data are not followed, and its memory.
fn not_followed(kind: Kind, volume: usize, start: u64, sectors: u64) -> (Io, Vec<u8>) {
    let io = Io::unfollowed(kind, volume, start, sectors);
    let bytes = match kind {
        Kind::Read | Kind::Write => sectors as usize * SECTOR_BYTES,
        _ => 0,
    };
    (io, vec![0; bytes])
}

/// So many bytes in pieces of any length.
fn pieces(bytes: usize, rng: &Rng) -> Vec<usize> {
    let (mut list, mut left) = (Vec::new(), bytes);
    for _ in 0..rng.below(5) {
        let piece = match rng.below(3) {
            0 => rng.below(left as u64 + 1) as usize,
            _ => left.min(rng.below(9) as usize * SECTOR_BYTES),
        };
        list.push(piece);
        left -= piece;
    }
    list.push(left);
    list
}

impl World {
    /// Begins a host I/O, or something else that a host does.
    pub(super) fn draw_io(&mut self) {
        if self.known.is_empty() || self.ops.len() >= self.plan.depth {
            return;
        }
        let volume = self.rng.below(self.known.len() as u64) as usize;
        if self.known[volume].gone || self.known[volume].floor == Floor::Lower {
            return;
        }
        if self.plan.has(Feature::Resets) && self.chance(40) {
            return self.reset(volume);
        }
        if self.plan.has(Feature::Memory) && self.chance(8) && self.change_memory() {
            return;
        }
        let (reads, flushes) = (self.mix.reads, self.mix.flushes);
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
        let has_data = matches!(kind, Kind::Read | Kind::Write);
        if has_data && self.plan.has(Feature::Lists) && self.chance(24) {
            return self.issue_short(volume, kind, start, sectors);
        }
        self.issue(volume, kind, start, sectors, durable);
    }

    /// Where a host I/O goes: mostly a short one, often to where others go.
    fn place(&mut self, volume: usize) -> Option<(u64, u64)> {
        let block = u64::from(self.plan.block_sectors);
        let (size, mix) = (self.usable_sectors(volume), self.mix);
        let most = (mix.io_sectors_max.min(size) / block).max(1);
        let blocks = match mix.is_full {
            true => most,
            false => 1 + self.rng.below(1 + self.rng.below(1 + self.rng.below(most))),
        };
        let sectors = blocks * block;
        if self.rng.below(100) < mix.in_order {
            let start = self.known[volume].next;
            let start = if start + sectors <= size { start } else { 0 };
            self.known[volume].next = start + sectors;
            return (start + sectors <= size).then_some((start, sectors));
        }
        let (from, room) = match self.rng.below(100) < mix.hot {
            true => (size * mix.hot_at / 1000 / block * block, 256),
            false => (0, size),
        };
        let room = room.min(size - from);
        if room < sectors {
            return None;
        }
        let at = self.rng.below((room - sectors) / block + 1) * block;
        Some((from + at, sectors))
    }

    /// Sectors of a volume that hosts may use now.
    pub(super) fn usable_sectors(&self, volume: usize) -> u64 {
        let shown = self.listed(volume).map_or(0, |listed| listed.sectors);
        let size = shown.min(self.oracle.sectors(volume));
        size.min(self.known[volume].limit.unwrap_or(u64::MAX))
    }

    /// The name by which a host opens a volume, and whether it can. The name may be another one's since
    /// the lists were taken: hosts then see that by its UUID.
    fn name_of(&self, volume: usize) -> (String, bool) {
        let Some(listed) = self.listed(volume) else {
            return ("unlisted".into(), false);
        };
        let stage = &self.m().host.stage;
        let name = listed.name.clone();
        match stage.volume(&name) {
            Some(shown) if shown.uuid.to_string() != listed.uuid => ("another one's".into(), false),
            shown => {
                let can = listed.running && shown.is_some() && !stage.is_going(&name);
                (name, can)
            }
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
        let value = match kind {
            Kind::Write => self.new_value(sectors),
            _ => ZERO,
        };
        let is_followed = self.known[volume].floor == Floor::Ground;
        let (io, mut memory) = match is_followed {
            true => self.oracle.begins(kind, volume, start, sectors, value),
            false => not_followed(kind, volume, start, sectors),
        };
        let list = self.list_of(&mut memory);
        let begun = io.begun;
        let overlaps = |Op { io: other, .. }: &Op| {
            other.volume == volume
                && other.kind == kind
                && other.start < start + sectors
                && start < other.start + other.sectors
        };
        if kind == Kind::Write && self.ops.values().any(overlaps) {
            self.met.note("writes that overlap");
        }
        let host_io = HostIo {
            kind,
            start,
            sectors,
            memory,
            list,
            durable,
        };
        let met = self.met_of(volume);
        let tag = self.m().host.stage.issue(&name, host_io);
        self.note(|| {
            let fua = if durable { " FUA" } else { "" };
            let value = if kind == Kind::Write {
                format!(" value {value}")
            } else {
                String::new()
            };
            format!("io {tag} {kind:?}{fua} {name} (v{volume}) {start}+{sectors}{value} @{begun}")
        });
        if self.plan.reactors > 1 {
            self.met.note("I/O on several reactors");
        }
        let op = Op {
            io,
            issued_us: self.now(),
            durable,
            excused: !shown || self.is_reset(volume),
            is_reset: false,
            must_fail: false,
            is_followed,
            met,
        };
        self.ops.insert(tag, op);
    }

    /// The pieces of a host's memory, to which more may be added than its I/O needs.
    fn list_of(&mut self, memory: &mut Vec<u8>) -> Vec<usize> {
        if !self.plan.has(Feature::Lists) || memory.is_empty() {
            return vec![memory.len()];
        }
        if self.chance(3) {
            let blocks = 1 + self.rng.below(16);
            let more = blocks as usize * self.plan.block_sectors as usize * SECTOR_BYTES;
            memory.resize(memory.len() + more, FILLER);
            self.met.note("memory longer than its I/O");
        }
        pieces(memory.len(), &self.rng)
    }

    /// Begins a host I/O whose memory is too short: it fails, and touches nothing.
    fn issue_short(&mut self, volume: usize, kind: Kind, start: u64, sectors: u64) {
        let (name, _) = self.name_of(volume);
        let bytes = self.rng.below(sectors * SECTOR_BYTES as u64) as usize;
        let memory = vec![FILLER; bytes];
        let list = pieces(bytes, &self.rng);
        let host_io = HostIo {
            list,
            ..HostIo::new(kind, start, sectors, memory)
        };
        let tag = self.m().host.stage.issue(&name, host_io);
        self.note(|| {
            format!("io {tag} {kind:?} {name} {start}+{sectors}, memory of {bytes} bytes")
        });
        let io = Io::unfollowed(kind, volume, start, sectors);
        let op = Op {
            must_fail: true,
            ..self.op_without_data(io)
        };
        self.ops.insert(tag, op);
    }

    /// What is in flight and changes nothing.
    fn op_without_data(&self, io: Io) -> Op {
        Op {
            io,
            issued_us: self.now(),
            durable: false,
            excused: true,
            is_reset: false,
            must_fail: false,
            is_followed: false,
            met: String::new(),
        }
    }

    /// What hosts write to so many sectors next.
    fn new_value(&mut self, sectors: u64) -> u32 {
        self.written += sectors * SECTOR_BYTES as u64;
        self.next_value += 1;
        self.next_value - 1
    }

    fn reset(&mut self, volume: usize) {
        let (name, _) = self.name_of(volume);
        let tag = self.m().host.stage.reset(&name);
        self.note(|| format!("io {tag} reset of {name}"));
        for op in self.ops.values_mut().filter(|op| op.io.volume == volume) {
            op.excused = true;
        }
        let io = Io::unfollowed(Kind::Flush, volume, 0, 0);
        let op = Op {
            is_reset: true,
            ..self.op_without_data(io)
        };
        self.ops.insert(tag, op);
    }

    /// The host changes the memory of a write that is under way; false when there is none.
    fn change_memory(&mut self) -> bool {
        let is_write = |op: &Op| op.io.kind == Kind::Write && op.is_followed;
        let writes = self.ops.iter().filter(|(_, op)| is_write(op));
        let writes: Vec<u64> = writes.map(|(&tag, _)| tag).collect();
        if writes.is_empty() {
            return false;
        }
        let tag = self.any(&writes);
        let io = self.ops[&tag].io;
        let value = self.new_value(io.sectors);
        let memory = data_of(io.volume, io.start, io.sectors, value);
        if !self.m().host.stage.change_memory(tag, &memory) {
            return false;
        }
        self.note(|| format!("io {tag} has other memory, value {value}"));
        self.oracle.write_changes(&io, value);
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
        let (now_us, io) = (self.now(), &op.io);
        self.note(|| {
            let seen = match io.kind {
                Kind::Read => format!(" {:?}", values(data)),
                _ => String::new(),
            };
            format!(
                "io {tag} {outcome:?} after {} us{seen}",
                now_us - op.issued_us
            )
        });
        if op.is_reset {
            return match ok {
                true => self.reset_is_over(tag, io.volume),
                false => Ok(()),
            };
        }
        let used = data.len().min(io.sectors as usize * SECTOR_BYTES);
        let (data, beyond) = data.split_at(used);
        if beyond.iter().any(|&byte| byte != FILLER) {
            return Err("it has changed memory beyond it".into());
        }
        if op.must_fail {
            self.met.note("memory too short for its I/O");
            return match ok {
                true => Err("it went well, and its memory is too short".into()),
                false => Ok(()),
            };
        }
        if ok && !op.met.is_empty() {
            self.met.note(format!("{:?}{}", io.kind, op.met));
        }
        if !ok && !op.excused && !self.disturbed {
            return Err(format!("failed: {outcome:?}"));
        }
        if !op.is_followed {
            return Ok(());
        }
        self.oracle.ends(io, ok.then_some(data))?;
        if ok && io.kind == Kind::Flush {
            let known = &mut self.known[io.volume];
            known.in_doubt &= known.device.is_none();
            self.promised = true;
        }
        if ok && op.durable {
            self.met.note("a durable write");
            self.oracle.is_durable(io);
            self.promised = true;
        }
        Ok(())
    }

    /// Whether a reset of a volume is under way: it may meet what begins now, too.
    fn is_reset(&self, volume: usize) -> bool {
        let mut ops = self.ops.values();
        ops.any(|op| op.is_reset && op.io.volume == volume)
    }

    /// What hosts had begun before a reset has ended when the reset has.
    fn reset_is_over(&mut self, tag: u64, volume: usize) -> Result<(), String> {
        self.met.note("a reset");
        let mut before = self.ops.range(..tag);
        match before.find(|(_, op)| op.io.volume == volume && !op.is_reset) {
            Some((other, op)) => Err(format!("io {other}, {}, goes on after it", op.describe())),
            None => Ok(()),
        }
    }

    /// Reads a whole volume.
    pub(super) fn read_all(&mut self, volume: usize) -> Result<(), String> {
        let end = self.usable_sectors(volume);
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
