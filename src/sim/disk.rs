//! Disks that lose what was not flushed.
//!
//! A [`Medium`] is the device itself and outlives power cuts; a [`SimDisk`] is it opened for one
//! life. A write is in the volatile cache from the moment it is given, becomes visible to reads at a
//! moment between that and its answer, and durable when a flush is answered that began after its
//! answer. At a power cut each block of an unflushed write is kept or lost by itself, and of
//! several unflushed writes to a block any may be the one that is kept.

mod open;

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::bytes::{Bytes, Image};
pub use super::fuse::{Fault, Fuse};
use super::ills::BadSectors;
pub use super::ills::{Faults, Ills, Lag, Unmapped};
use crate::rng::Rng;
use crate::units::{SECTOR_BYTES, Sector};
pub use open::SimDisk;
pub(super) use open::{buf_of, read_into, write_from};

/// An unflushed write.
#[derive(Clone)]
struct Pending {
    nr: u64,
    at: Sector,
    data: Vec<u8>,
    visible: bool,
    answered: bool,
}

impl Pending {
    fn sectors(&self) -> u64 {
        (self.data.len() / SECTOR_BYTES) as u64
    }
}

/// What a device holds, and what it may forget.
pub struct Medium {
    name: String,
    block_sectors: u32,
    /// What [`Disk::kind`](crate::disk::Disk::kind) says; empty (unknown) unless a test sets it.
    pub kind: Cell<&'static str>,
    visible: RefCell<Bytes>,
    durable: RefCell<Bytes>,
    pending: RefCell<Vec<Pending>>,
    next_nr: Cell<u64>,
    /// Of unflushed writes.
    pending_bytes: Cell<usize>,
    /// Its illnesses.
    pub ills: Cell<Ills>,
    /// Requests that it failed, or did wrong.
    pub faulted: Cell<u64>,
    bad: RefCell<BadSectors>,
    /// Whether flushes do nothing: the canary that a simulator must notice.
    pub ignore_flush: Cell<bool>,
    /// The writes given to it since it was made.
    pub writes: Cell<u64>,
    /// Its failures.
    pub faults: Cell<Faults>,
    /// What it makes of discards.
    pub unmapped: Cell<Unmapped>,
    /// It answers no reads.
    pub stuck: Cell<bool>,
    /// Which answers come late.
    pub lag: Cell<Lag>,
    /// How many µs a request takes at most, beside what it takes of a fast device.
    pub pace_us: Cell<u64>,
    /// Sectors at its end that are not there now; what they hold stays.
    pub hidden_sectors: Cell<u64>,
    /// It fails whatever it is told.
    dead: Cell<bool>,
    /// What cuts its power, or lets it fail.
    pub fuse: RefCell<Option<Rc<Fuse>>>,
}

impl Medium {
    /// A device of zeros.
    pub fn new(name: &str, sectors: u64, block_sectors: u32) -> Rc<Medium> {
        let bytes = Bytes::zeros(sectors as usize * SECTOR_BYTES);
        Self::with_bytes(name, bytes, block_sectors)
    }

    /// A device that holds these bytes.
    pub fn with_bytes(name: &str, bytes: impl Into<Bytes>, block_sectors: u32) -> Rc<Medium> {
        let bytes = bytes.into();
        Rc::new(Medium {
            name: name.to_string(),
            block_sectors,
            kind: Cell::new(""),
            durable: RefCell::new(bytes.clone()),
            visible: RefCell::new(bytes),
            pending: RefCell::default(),
            next_nr: Cell::new(0),
            pending_bytes: Cell::new(0),
            ills: Cell::default(),
            faulted: Cell::new(0),
            bad: RefCell::default(),
            ignore_flush: Cell::new(false),
            writes: Cell::new(0),
            faults: Cell::default(),
            unmapped: Cell::default(),
            stuck: Cell::new(false),
            lag: Cell::default(),
            pace_us: Cell::new(0),
            hidden_sectors: Cell::new(0),
            dead: Cell::new(false),
            fuse: RefCell::default(),
        })
    }

    /// A device of its own that holds the same, what was not flushed as such, and has no faults.
    pub fn fork(&self) -> Rc<Medium> {
        let fork = Medium::with_bytes(&self.name, self.look().clone(), self.block_sectors);
        *fork.durable.borrow_mut() = self.durable.borrow().clone();
        *fork.pending.borrow_mut() = self.pending.borrow().clone();
        fork.next_nr.set(self.next_nr.get());
        fork.pending_bytes.set(self.pending_bytes.get());
        fork.kind.set(self.kind.get());
        fork.unmapped.set(self.unmapped.get());
        fork
    }

    /// Another device of this name that holds what a read would return now.
    pub fn copy_as(&self, name: &str) -> Rc<Medium> {
        let copy = Medium::with_bytes(name, self.look().clone(), self.block_sectors);
        copy.kind.set(self.kind.get());
        copy
    }

    /// Some sectors cannot be read until they are written.
    pub fn turn_bad(&self, at: Sector, sectors: u64) {
        self.bad.borrow_mut().0.push((at.0, at.0 + sectors));
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a read of the whole device would return now.
    pub fn bytes(&self) -> Vec<u8> {
        let all = self.look();
        all.read(0..all.size_bytes()).into_owned()
    }

    /// All of it, as it would be read now. Nothing may be written while it is held.
    pub fn look(&self) -> Ref<'_, Bytes> {
        self.visible.borrow()
    }

    /// Some bytes as a read would return them now.
    pub fn peek(&self, at: Sector, sectors: u64) -> Vec<u8> {
        self.visible.borrow().read(range(at, sectors)).into_owned()
    }

    /// Whether some bytes are those of another device.
    pub fn is_same(&self, at: Sector, other: &Medium, there: Sector, sectors: u64) -> bool {
        let (mine, theirs) = (self.look(), other.look());
        mine.read(range(at, sectors)) == theirs.read(range(there, sectors))
    }

    /// Changes bytes at once and durably, as a hand from outside does.
    pub fn poke(&self, at: Sector, data: &[u8]) {
        for side in [&self.visible, &self.durable] {
            side.borrow_mut().write(at.bytes() as usize, data);
        }
    }

    /// Its size.
    pub fn sectors(&self) -> u64 {
        (self.look().size_bytes() / SECTOR_BYTES) as u64 - self.hidden_sectors.get()
    }

    /// It becomes so many sectors large, which is smaller; what lay beyond is lost.
    pub fn shrink(&self, sectors: u64) {
        self.resize(sectors as usize * SECTOR_BYTES);
    }

    /// It becomes so many sectors larger; those are zeros.
    pub fn grow(&self, sectors: u64) {
        let before = self.look().size_bytes();
        self.resize(before + sectors as usize * SECTOR_BYTES);
    }

    fn resize(&self, bytes: usize) {
        self.visible.borrow_mut().resize(bytes);
        self.durable.borrow_mut().resize(bytes);
    }

    /// Whether there is power for one more write or flush.
    fn step(&self) -> bool {
        self.fuse.borrow().as_ref().is_none_or(|fuse| fuse.step())
    }

    /// Whether the fuse, or what it has done, lets one more operation fail.
    fn errs(&self) -> bool {
        let fuse = self.fuse.borrow();
        let fault = fuse.as_ref().and_then(|fuse| fuse.operation());
        self.dead
            .set(self.dead.get() || fault.is_some_and(|fault| fault.lasting));
        let errs = fault.is_some() || self.dead.get();
        self.faulted.set(self.faulted.get() + u64::from(errs));
        errs
    }

    /// Nothing is wrong with it any more. What it holds stays.
    pub fn cure(&self) {
        self.recover();
        self.bad.take();
    }

    /// The same, except for its bad sectors.
    pub fn recover(&self) {
        self.dead.take();
        self.lag.take();
        self.faults.take();
        self.ills.take();
    }

    fn is_bad(&self, at: Sector, sectors: u64) -> bool {
        let hit = self.bad.borrow().has(at, sectors);
        self.faulted.set(self.faulted.get() + u64::from(hit));
        hit
    }

    /// Some sectors of a write turn bad.
    fn spoil_some(&self, at: Sector, sectors: u64, rng: &Rng) {
        let start = at.0 + rng.below(sectors);
        let end = (at.0 + sectors).min(start + 1 + rng.below(8));
        self.bad.borrow_mut().0.push((start, end));
    }

    fn give(&self, at: Sector, data: Vec<u8>) -> u64 {
        let nr = self.next_nr.get();
        self.next_nr.set(nr + 1);
        self.writes.set(self.writes.get() + 1);
        self.pending_bytes
            .set(self.pending_bytes.get() + data.len());
        self.pending.borrow_mut().push(Pending {
            nr,
            at,
            data,
            visible: false,
            answered: false,
        });
        nr
    }

    /// The write becomes visible. The order in which writes do is that in which they count.
    fn show(&self, nr: u64) {
        let mut pending = self.pending.borrow_mut();
        let Some(i) = pending.iter().position(|p| p.nr == nr) else {
            return;
        };
        if pending[i].visible {
            return;
        }
        let mut write = pending.remove(i);
        write.visible = true;
        let at = write.at.bytes() as usize;
        self.visible.borrow_mut().write(at, &write.data);
        pending.push(write);
    }

    fn answer(&self, nr: u64) {
        self.show(nr);
        let mut pending = self.pending.borrow_mut();
        if let Some(write) = pending.iter_mut().find(|p| p.nr == nr) {
            write.answered = true;
        }
        drop(pending);
        if self.pending_bytes.get() > PENDING_BYTES_MAX {
            self.spill();
        }
    }

    /// A write that came to nothing, or to a part of it.
    fn spoil(&self, nr: u64, rng: &Rng) {
        let mut pending = self.pending.borrow_mut();
        let Some(i) = pending.iter().position(|p| p.nr == nr) else {
            return;
        };
        // What reads have seen has landed.
        if pending[i].visible {
            drop(pending);
            return self.answer(nr);
        }
        let block = u64::from(self.block_sectors);
        let keep = (rng.below(pending[i].sectors() / block + 1) * block) as usize;
        pending[i].data.truncate(keep * SECTOR_BYTES);
        drop(pending);
        self.answer(nr);
    }

    /// A device's cache is not endless: the older half of what it was told goes to the medium.
    fn spill(&self) {
        let mut old = self.answered();
        old.truncate(old.len() / 2);
        old.sort_unstable();
        self.settle(&old);
    }

    fn answered(&self) -> Vec<u64> {
        let pending = self.pending.borrow();
        pending
            .iter()
            .filter(|p| p.answered)
            .map(|p| p.nr)
            .collect()
    }

    fn settle(&self, covered: &[u64]) {
        self.supersede(covered);
        let mut durable = self.durable.borrow_mut();
        self.pending.borrow_mut().retain(|write| {
            if covered.binary_search(&write.nr).is_err() {
                return true;
            }
            durable.write(write.at.bytes() as usize, &write.data);
            let left = self.pending_bytes.get().saturating_sub(write.data.len());
            self.pending_bytes.set(left);
            false
        });
        if self.pending.borrow().is_empty() {
            self.pending_bytes.set(0);
        }
    }

    /// What is durable by a later write than one that stays in the cache is not undone by that: there
    /// the sectors become those of the later one. Pending writes stand in the order in which they
    /// became visible.
    fn supersede(&self, covered: &[u64]) {
        let mut pending = self.pending.borrow_mut();
        for i in 1..pending.len() {
            let (before, from) = pending.split_at_mut(i);
            let later = &from[0];
            if covered.binary_search(&later.nr).is_err() {
                continue;
            }
            let end = later.at.0 + later.sectors();
            for earlier in before.iter_mut().filter(|p| p.visible) {
                let start = earlier.at.0.max(later.at.0);
                let end = end.min(earlier.at.0 + earlier.sectors());
                if start >= end || covered.binary_search(&earlier.nr).is_ok() {
                    continue;
                }
                let bytes = (end - start) as usize * SECTOR_BYTES;
                let to = (start - earlier.at.0) as usize * SECTOR_BYTES;
                let from = (start - later.at.0) as usize * SECTOR_BYTES;
                earlier.data[to..to + bytes].copy_from_slice(&later.data[from..from + bytes]);
            }
        }
    }

    /// The end of a life: what was under way ends somehow, and `power`: what was not flushed is lost in
    /// part.
    pub fn crash(&self, rng: &Rng, power: bool) {
        self.kill(rng);
        if power {
            self.cut_power(rng);
        }
    }

    /// The program is gone, the device is not: what was under way happens, does not, or in part.
    pub fn kill(&self, rng: &Rng) {
        let open: Vec<u64> = {
            let pending = self.pending.borrow();
            pending
                .iter()
                .filter(|p| !p.answered)
                .map(|p| p.nr)
                .collect()
        };
        for nr in open {
            if rng.below(2) == 0 {
                self.spoil(nr, rng);
            } else {
                self.answer(nr);
            }
        }
    }

    /// The power goes and comes back.
    pub fn cut_power(&self, rng: &Rng) {
        let pending = self.pending.take();
        self.pending_bytes.set(0);
        let mut versions: BTreeMap<u64, Vec<(usize, usize)>> = BTreeMap::new();
        let block_bytes = self.block_sectors as usize * SECTOR_BYTES;
        for (i, write) in pending.iter().enumerate() {
            for s in (0..write.sectors()).step_by(self.block_sectors as usize) {
                let place = (i, s as usize * SECTOR_BYTES);
                versions.entry(write.at.0 + s).or_default().push(place);
            }
        }
        let manner = rng.below(4);
        let (mut durable, mut visible) = (self.durable.borrow_mut(), self.visible.borrow_mut());
        for (sector, places) in versions {
            let kept = match manner {
                0 => None,
                1 => places.last(),
                _ => places.get(rng.below(places.len() as u64 + 1) as usize),
            };
            let to = range(Sector(sector), self.block_sectors.into());
            if let Some(&(i, from)) = kept {
                durable.write(to.start, &pending[i].data[from..from + block_bytes]);
            }
            visible.write(to.start, &durable.read(to.clone()));
        }
    }
}

fn range(at: Sector, sectors: u64) -> std::ops::Range<usize> {
    let start = at.bytes() as usize;
    start..start + sectors as usize * SECTOR_BYTES
}

/// Bytes of unflushed writes that a device holds back at most; then it makes some durable unasked.
const PENDING_BYTES_MAX: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::sched::Sched;

    fn rig() -> (Rc<Medium>, Sched, Rc<SimDisk>) {
        let sched = Sched::new(0, Rc::new(Rng::new(7)));
        let medium = Medium::new("m", 64, 1);
        let disk = SimDisk::new(medium.clone(), sched.clone());
        (medium, sched, disk)
    }

    fn run(sched: &Sched) {
        while let Some(at) = sched.next_us() {
            sched.set_now(at);
            sched.run_due();
        }
    }

    #[test]
    fn what_was_flushed_stays_and_what_was_not_may_go() {
        let (medium, sched, disk) = rig();
        disk.start_write(Sector(3), vec![1; SECTOR_BYTES], |_| ());
        run(&sched);
        disk.start_flush(|_| ());
        disk.start_write(Sector(3), vec![2; SECTOR_BYTES], |_| ());
        run(&sched);
        assert_eq!(medium.peek(Sector(3), 1)[0], 2);
        let rng = Rng::new(1);
        let mut seen = [false; 3];
        for _ in 0..40 {
            medium.cut_power(&rng);
            seen[usize::from(medium.peek(Sector(3), 1)[0])] = true;
            medium.poke(Sector(3), &[1; SECTOR_BYTES]);
            disk.start_write(Sector(3), vec![2; SECTOR_BYTES], |_| ());
            run(&sched);
        }
        assert_eq!(seen, [false, true, true]);
    }

    #[test]
    fn a_flush_of_the_later_of_two_writes_is_not_undone_by_the_earlier_one() {
        let (medium, sched, disk) = rig();
        for nr in [1, 2] {
            medium.give(Sector(3), vec![nr; SECTOR_BYTES]);
        }
        medium.show(0);
        medium.answer(1);
        medium.settle(&[1]);
        medium.answer(0);
        disk.start_flush(|_| ());
        run(&sched);
        medium.cut_power(&Rng::new(1));
        assert_eq!(medium.peek(Sector(3), 1)[0], 2);
    }

    #[test]
    fn bad_sectors_are_unreadable_until_they_are_written() {
        let (medium, sched, disk) = rig();
        let read = |at, n| {
            let out = Rc::new(Cell::new(None));
            let seen = out.clone();
            disk.start_read(Sector(at), n, move |data| seen.set(Some(data.is_ok())));
            run(&sched);
            out.get()
        };
        medium.turn_bad(Sector(8), 8);
        assert_eq!(
            (read(0, 8), read(4, 5), read(16, 8)),
            (Some(true), Some(false), Some(true))
        );
        disk.start_write(Sector(10), vec![1; 2 * SECTOR_BYTES], |_| ());
        assert_eq!(medium.bad.borrow().0, [(8, 10), (12, 16)]);
        assert_eq!(
            (read(10, 2), read(9, 1), read(15, 1)),
            (Some(true), Some(false), Some(false))
        );
        disk.start_write(Sector(0), vec![1; 64 * SECTOR_BYTES], |_| ());
        assert_eq!((read(0, 64), medium.faulted.get()), (Some(true), 3));
    }

    #[test]
    fn lost_and_misdirected_writes_seem_to_succeed() {
        let (medium, sched, disk) = rig();
        for (lost, misdirected) in [(1, 0), (0, 1)] {
            medium.ills.set(Ills {
                lost,
                misdirected,
                ..Ills::default()
            });
            let ok = Rc::new(Cell::new(false));
            let seen = ok.clone();
            disk.start_write(Sector(3), vec![7; SECTOR_BYTES], move |done| {
                seen.set(done.is_ok())
            });
            run(&sched);
            assert!(ok.get() && medium.peek(Sector(3), 1)[0] == 0);
            let written = medium.peek(Sector(0), medium.sectors()).contains(&7);
            assert_eq!(written, misdirected > 0);
        }
    }

    #[test]
    fn a_flush_covers_only_what_was_answered_when_it_began() {
        let (medium, sched, disk) = rig();
        disk.start_write(Sector(0), vec![9; SECTOR_BYTES], |_| ());
        disk.start_flush(|_| ());
        run(&sched);
        assert_eq!(medium.durable.borrow().read(0..1)[0], 0);
        disk.start_flush(|_| ());
        run(&sched);
        assert_eq!(medium.durable.borrow().read(0..1)[0], 9);
    }
}
