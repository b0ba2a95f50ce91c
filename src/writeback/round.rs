//! One round of write-back: which dirty extents it takes, and how they become clean.
//!
//! Bounds: a round moves at most `ROUND_SECTORS`, less while other volumes' rounds are under way, and
//! looks at `SCAN_EXTENTS` extents.

use std::rc::Rc;

use super::Writeback;
use super::line::{Line, end_of};
use crate::canary::{self, Bug};
use crate::disk::{Disk, IoError, Stopped, answers};
use crate::index::Extent;
use crate::request::owner::Volume;
use crate::task::yield_now;
use crate::units::{SECTOR_BYTES, Sector};

/// Sectors moved in one round: 4 MiB.
const ROUND_SECTORS: u64 = 8192;
/// Sectors moved in one round however many there are: 256 KiB.
const ROUND_SECTORS_LEAST: u64 = 512;
/// The longest single write: 1 MiB.
const RUN_SECTORS: u64 = 2048;
/// Extents looked at in one step.
const SCAN_EXTENTS: usize = 4096;
/// Extents moved in one round.
const ROUND_EXTENTS: usize = 256;
/// Extents that become clean in one step.
const CLEANED_A_STEP: usize = 64;
/// Attempts to read dirty data that must fail before the set says so.
const TRIES_QUIET: u32 = 3;

/// Neighbouring extents that go out in one write.
struct Run {
    start: Sector,
    end: Sector,
    extents: Vec<Extent>,
}

impl Writeback {
    /// Sectors that a round may move now: the volumes whose rounds are under way share the memory for
    /// them, so that one whose device is slow leaves room for the others.
    fn round_sectors(&self) -> u64 {
        (ROUND_SECTORS / self.at_work.get().max(1) as u64).max(ROUND_SECTORS_LEAST)
    }

    /// The next dirty extents behind the cursor, each within one run, and whether they are the last of a
    /// pass.
    fn gather(&self, line: &Line, volume: &Volume) -> (Vec<Run>, bool) {
        let tree = &self.owner.tree;
        let (resting, now_us) = (line.resting.borrow(), self.exec.now_us());
        let most = self.round_sectors();
        let (mut found, mut sectors, mut looked) = (Vec::new(), 0, 0);
        let (mut next, mut beyond, end) = (None, 0, end_of(volume));
        tree.scan(volume.inode, line.cursor.get(), Sector::MAX, &mut |e| {
            if looked == SCAN_EXTENTS || found.len() == ROUND_EXTENTS || sectors >= most {
                next = Some(e.start);
                return false;
            }
            looked += 1;
            if e.dirty && tree.is_fresh(&e) {
                let reach = e.end().min(end);
                beyond += e.end() - e.start.max(reach);
                let mut at = e.start;
                while at < reach {
                    let to = (at + RUN_SECTORS).min(reach);
                    let piece = e.cut(at, to);
                    if !resting.has(&piece, now_us) {
                        found.push(piece);
                    }
                    at = to;
                }
                sectors += reach.0.saturating_sub(e.start.0);
            }
            true
        });
        line.looked(volume, beyond, next);
        (join_runs(found), next.is_none())
    }

    /// One round; false when nothing could be taken behind the cursor: what is dirty there rests, or
    /// is held by a write past the cache.
    pub(super) async fn round(&self, line: &Line, volume: &Rc<Volume>) -> bool {
        let (runs, is_last) = self.gather(line, volume);
        let taken = self.carry(line, volume, runs).await;
        if is_last {
            line.pass_ended();
        }
        taken
    }

    /// Carries runs to the backing device, and marks them clean; false when none can be taken.
    async fn carry(&self, line: &Line, volume: &Rc<Volume>, mut runs: Vec<Run>) -> bool {
        let Some(disk) = volume.backing.clone() else {
            return false;
        };
        runs.retain(|r| self.owner.begin_writeback(volume, r.start, r.end));
        if runs.is_empty() {
            return false;
        }
        // The keys first: were they lost after the backing device has the data, an older clean copy
        // in the cache would come back and differ from it.
        let mut done = Ok(());
        if self.owner.tree.journal.commit().await.is_ok() {
            let written;
            (written, done) = self.copy(line, volume, &runs, &disk).await;
            let flushed = match canary::has(Bug::CleanBeforeFlush) {
                true => Ok(()),
                false => disk.flush().await,
            };
            if flushed.is_ok() {
                for (nth, extent) in written.into_iter().enumerate() {
                    if nth > 0 && nth % CLEANED_A_STEP == 0 {
                        yield_now().await;
                    }
                    if self.clean(volume, &extent).await.is_err() {
                        break;
                    }
                }
            }
            done = done.and(flushed);
        }
        if let Err(why) = done {
            log::error!("write-back to {}: {why}; it is tried again", disk.name());
            // Its writes do not wait for a device that fails.
            self.owner.stay(volume);
        }
        self.note_end(line, done.is_ok());
        self.owner.end_writeback(volume);
        true
    }

    /// Copies runs to the backing device. Returns the extents that it has now, and whether it took
    /// all that could be read.
    async fn copy(
        &self,
        line: &Line,
        volume: &Volume,
        runs: &[Run],
        backing: &Rc<dyn Disk>,
    ) -> (Vec<Extent>, Result<(), IoError>) {
        let extents: Vec<Extent> = runs.iter().flat_map(|run| run.extents.clone()).collect();
        let cache = self.owner.tree.cache_disk();
        let reads = extents.iter().map(|e| {
            let buf = cache.alloc(e.sectors as usize * SECTOR_BYTES);
            cache.read(e.at, buf)
        });
        let (mut good, mut data, mut result) = (Vec::new(), Vec::new(), Ok(()));
        for (extent, (buf, done)) in extents.iter().zip(answers(reads).await) {
            match done {
                // Its bucket was reused meanwhile: it was overwritten.
                _ if !self.owner.tree.is_fresh(extent) => {}
                Ok(()) => {
                    good.push(*extent);
                    data.push(buf);
                }
                Err(_) => result = result.and(self.unreadable(line, volume, extent)),
            }
        }
        let (runs, mut data) = (join_runs(good), data.into_iter());
        let writes = runs.iter().filter_map(|run| {
            let mut parts = run.extents.iter().zip(data.by_ref());
            let whole = if let [_] = run.extents[..] {
                parts.next().map(|(_, part)| part)
            } else {
                let mut whole = backing.alloc((run.end - run.start) as usize * SECTOR_BYTES);
                for (extent, part) in parts {
                    let at = (extent.start - run.start) as usize * SECTOR_BYTES;
                    whole[at..at + part.len()].copy_from_slice(&part);
                }
                Some(whole)
            };
            whole.map(|whole| backing.write(run.start, whole))
        });
        // The ranges are held until the last write has landed, whatever failed.
        let mut written = Vec::new();
        for (run, (_, done)) in runs.iter().zip(answers(writes).await) {
            if done.is_ok() {
                self.done_sectors.add(run.end - run.start);
                written.extend(&run.extents);
            }
            result = result.and(done);
        }
        (written, result)
    }

    /// Dirty data that the cache device cannot read now: they stay dirty, and rest. An error when
    /// too many do.
    fn unreadable(&self, line: &Line, volume: &Volume, extent: &Extent) -> Result<(), IoError> {
        // Writes over these data do not wait until they can be read.
        self.owner.stay(volume);
        let now_us = self.exec.now_us();
        let tries = line.resting.borrow_mut().rest(extent, now_us);
        // One bad place is one error, however often it is tried.
        if tries.is_none_or(|tries| tries == 1) {
            self.owner.cache_failed(false);
        }
        if tries == Some(TRIES_QUIET) {
            self.owner.dirty_unreadable(volume.inode, extent);
        }
        tries.map(|_| ()).ok_or(IoError::Failed)
    }

    async fn clean(&self, volume: &Volume, extent: &Extent) -> Result<(), Stopped> {
        while self.owner.tree.clean(volume.inode, extent).is_err() {
            self.owner.tree.journal.room().await?;
        }
        Ok(())
    }
}

fn join_runs(extents: Vec<Extent>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some(run) if run.end == extent.start && extent.end() - run.start <= RUN_SECTORS => {
                run.end = extent.end();
                run.extents.push(extent);
            }
            _ => runs.push(Run {
                start: extent.start,
                end: extent.end(),
                extents: vec![extent],
            }),
        }
    }
    runs
}
