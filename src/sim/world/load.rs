//! The load of a life: random host I/O on all volumes, and what the oracle says to its results.

use super::{Life, Op, World, state};
use crate::format::superblock::CacheMode;
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::sim::lane::SimIo;
use crate::sim::oracle::values;
use crate::sim::plan::End;
use crate::units::Sector;

impl World {
    pub(super) fn run_load(&mut self, life: &mut Life, end: End, ops: u64) -> Result<(), String> {
        let count = if end == End::Stop {
            ops
        } else {
            self.rng.below(ops + 1)
        };
        if self.rng.below(3) == 0 || ops == 0 {
            self.read_all(life)?;
        }
        let mut left = count;
        while left > 0 {
            if life.ops.len() < self.plan.depth && self.rng.below(3) > 0 {
                self.issue_random(life);
                left -= 1;
            }
            self.change_something(life);
            self.turn_with_ops(life)?;
        }
        if end != End::Stop {
            for _ in 0..self.rng.below(60) {
                self.turn(life)?;
            }
            self.note_stats(life);
            return Ok(());
        }
        self.drain(life)?;
        self.read_all(life)?;
        self.read_all(life)
    }

    pub(super) fn note_stats(&mut self, life: &Life) {
        if let Some(set) = &life.set {
            self.report.depth = self.report.depth.max(set.tree.stats().depth);
            self.report.written_back_sectors += set.writeback.done_sectors.get();
        }
        for volume in &life.volumes {
            self.report.hits += volume.shared.totals().sum().cache_hits;
        }
    }

    fn change_something(&mut self, life: &Life) {
        if self.plan.mode_changes && self.rng.below(200) == 0 {
            let volume = &life.volumes[self.rng.below(life.volumes.len() as u64) as usize];
            let mode = CacheMode::ALL[self.rng.below(4) as usize];
            volume.shared.set_mode(mode);
        }
    }

    pub(super) fn drain(&mut self, life: &mut Life) -> Result<(), String> {
        while !life.ops.is_empty() {
            self.turn_with_ops(life)?;
        }
        Ok(())
    }

    pub(super) fn turn_with_ops(&mut self, life: &mut Life) -> Result<(), String> {
        if self.turn(life)? || life.ops.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} host I/Os are never answered; {}",
            life.ops.len(),
            state(life)
        ))
    }

    /// Reads every sector of every volume once.
    pub(super) fn read_all(&mut self, life: &mut Life) -> Result<(), String> {
        for volume in 0..life.volumes.len() {
            let (mut at, end) = (0, self.plan.volumes[volume].sectors);
            while at < end {
                if life.ops.len() >= self.plan.depth {
                    self.turn_with_ops(life)?;
                    continue;
                }
                let block = u64::from(self.plan.block_sectors);
                let most = self.plan.io_sectors_max.max(64) / block;
                let sectors = ((1 + self.rng.below(most)) * block).min(end - at);
                self.issue(life, Kind::Read, volume, at, sectors);
                at += sectors;
            }
        }
        self.drain(life)
    }

    fn issue_random(&mut self, life: &mut Life) {
        let rng = self.rng.clone();
        let volume = rng.below(self.plan.volumes.len() as u64) as usize;
        let (block, size) = (
            u64::from(self.plan.block_sectors),
            self.plan.volumes[volume].sectors,
        );
        let kind = match rng.below(100) {
            n if n < self.plan.reads => Kind::Read,
            n if n < self.plan.reads + self.plan.flushes => Kind::Flush,
            n if n < self.plan.reads + self.plan.flushes + self.plan.clears => {
                [Kind::Unmap, Kind::WriteZeroes][rng.below(2) as usize]
            }
            _ => Kind::Write,
        };
        if kind == Kind::Flush {
            return self.issue(life, kind, volume, 0, 0);
        }
        let most = (self.plan.io_sectors_max.min(size) / block).max(1);
        // Mostly short ones.
        let most = 1 + rng.below(1 + rng.below(most));
        let sectors = ((1 + rng.below(most)) * block).min(size);
        let room = if rng.below(100) < self.plan.hot {
            (size / 16).max(sectors)
        } else {
            size
        };
        let start = rng.below((room - sectors) / block + 1) * block;
        self.issue(life, kind, volume, start, sectors);
    }

    fn issue(&mut self, life: &mut Life, kind: Kind, volume: usize, start: u64, sectors: u64) {
        let reactor = self.rng.below(self.plan.reactors as u64) as usize;
        let tag = self.next_tag;
        self.next_tag += 1;
        let value = self.next_value;
        self.next_value += u32::from(kind == Kind::Write);
        let (op, memory) = self.oracle.begins(kind, volume, start, sectors, value);
        let begun = op.begun;
        self.trace(|| {
            let value = if kind == Kind::Write { value } else { 0 };
            format!("#{tag} {kind:?} v{volume} {start}+{sectors} r{reactor} value {value} @{begun}")
        });
        let op = Op {
            io: op,
            issued_us: life.sched.now_us(),
        };
        life.ops.insert(tag, op);
        let front = &life.volumes[volume].fronts[reactor];
        let io = front.lane().host_io(tag, memory);
        io.start(kind, Sector(start), sectors);
        front.submit(io);
    }

    /// Takes what a front has answered.
    pub(super) fn collect(
        &mut self,
        life: &mut Life,
        volume: usize,
        reactor: usize,
    ) -> Result<usize, String> {
        let lane = life.volumes[volume].fronts[reactor].lane();
        let mut done = Vec::new();
        while let Some(answer) = lane.finished() {
            done.push(answer);
        }
        let n = done.len();
        for (io, outcome) in done {
            self.answered(life, io, outcome)?;
        }
        Ok(n)
    }

    fn answered(&mut self, life: &mut Life, io: SimIo, outcome: Outcome) -> Result<(), String> {
        let tag = io.host().tag;
        let op = life.ops.remove(&tag).expect("an I/O of the load");
        let ok = outcome == Outcome::Success;
        self.report.ops += 1;
        self.trace(|| {
            let values = match op.io.kind {
                Kind::Read => values(&io.host().memory.borrow()),
                _ => Vec::new(),
            };
            format!("#{tag} {:?} answered {outcome:?} {values:?}", op.io.kind)
        });
        self.report.failed += u64::from(!ok);
        let no_space =
            self.plan.outgrown && op.io.kind == Kind::Write && outcome == Outcome::NoSpace;
        if !ok && !no_space && !self.may_fail() {
            let why = life.set.as_ref().and_then(|set| set.latch.why());
            return Err(format!("#{tag} {:?} failed; the set: {why:?}", op.io.kind));
        }
        let memory = io.host().memory.borrow();
        let believed = ok && !(self.plan.lies && op.io.kind == Kind::Read);
        self.oracle
            .ends(&op.io, believed.then_some(&memory[..]))
            .map_err(|why| format!("#{tag}: {why}"))
    }
}
