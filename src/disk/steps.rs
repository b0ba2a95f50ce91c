//! Transfers of memory that a device does not reach, in steps through a little that it does.
//!
//! The memory for the steps is put by before any is needed, so that a set's metadata can be read and
//! written whatever becomes of the rest. It serves one transfer at a time, the others wait.

use std::cell::RefCell;

use super::{Buf, BufFuture, IoError};
use crate::task::Lock;
use crate::units::{SECTOR_BYTES, Sector};

/// Bytes that are transferred in one step.
pub const STEP_BYTES: usize = 64 << 10;

/// The memory for the steps.
#[derive(Default)]
pub struct Reserve {
    step: RefCell<Option<Buf>>,
    turn: Lock,
}

impl Reserve {
    /// Puts memory by that all devices reach: `STEP_BYTES` of it.
    pub fn fill(&self, memory: Buf) {
        *self.step.borrow_mut() = Some(memory);
    }

    /// Carries out a transfer of `buf`, whole sectors, at `at` of a device. `step` carries out one of so
    /// many sectors at a place, with the beginning of the memory that it is given.
    ///
    /// # Errors
    /// [`IoError::NoMemory`] when no memory was put by, else that of the first step that failed; those
    /// before it are done.
    pub async fn through(
        &self,
        writes: bool,
        at: Sector,
        buf: &mut [u8],
        step: impl Fn(Sector, u64, Buf) -> BufFuture,
    ) -> Result<(), IoError> {
        let _turn = self.turn.lock().await;
        let Some(mut memory) = self.step.borrow_mut().take() else {
            return Err(IoError::NoMemory);
        };
        let mut done = Ok(());
        for (i, part) in buf.chunks_mut(STEP_BYTES).enumerate() {
            if writes {
                memory[..part.len()].copy_from_slice(part);
            }
            let at = at + (i * STEP_BYTES / SECTOR_BYTES) as u64;
            (memory, done) = step(at, (part.len() / SECTOR_BYTES) as u64, memory).await;
            if done.is_err() {
                break;
            }
            if !writes {
                part.copy_from_slice(&memory[..part.len()]);
            }
        }
        *self.step.borrow_mut() = Some(memory);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Executor, yield_now};
    use std::rc::Rc;

    const BYTES: usize = 3 * STEP_BYTES + 3 * SECTOR_BYTES;

    /// A device of twice that size, which fails from a sector on, and what it was asked for.
    struct Rig {
        bytes: RefCell<Vec<u8>>,
        fails_from: u64,
        asked: RefCell<Vec<(u64, u64)>>,
    }

    impl Rig {
        fn step(
            self: &Rc<Self>,
            writes: bool,
            at: Sector,
            sectors: u64,
            mut buf: Buf,
        ) -> BufFuture {
            let rig = self.clone();
            rig.asked.borrow_mut().push((at.0, sectors));
            Box::pin(async move {
                yield_now().await;
                let (start, len) = (
                    at.0 as usize * SECTOR_BYTES,
                    sectors as usize * SECTOR_BYTES,
                );
                if at.0 + sectors > rig.fails_from {
                    return (buf, Err(IoError::Failed));
                }
                let mut bytes = rig.bytes.borrow_mut();
                let there = &mut bytes[start..start + len];
                match writes {
                    true => there.copy_from_slice(&buf[..len]),
                    false => buf[..len].copy_from_slice(there),
                }
                (buf, Ok(()))
            })
        }
    }

    fn rig(fails_from: u64) -> (Rc<Rig>, Rc<Reserve>) {
        let rig = Rc::new(Rig {
            bytes: RefCell::new(vec![0; 2 * BYTES]),
            fails_from,
            asked: RefCell::default(),
        });
        let reserve = Rc::new(Reserve::default());
        reserve.fill(Buf::new(Box::new(vec![0; STEP_BYTES])));
        (rig, reserve)
    }

    /// The memory of a transfer that has ended, and how it ended.
    type Transferred = (Vec<u8>, Result<(), IoError>);

    fn start(
        exec: &Executor,
        (rig, reserve): &(Rc<Rig>, Rc<Reserve>),
        writes: bool,
        at: u64,
        mut data: Vec<u8>,
    ) -> Rc<RefCell<Option<Transferred>>> {
        let (rig, reserve) = (rig.clone(), reserve.clone());
        let slot: Rc<RefCell<Option<_>>> = Rc::default();
        let out = slot.clone();
        exec.spawn(async move {
            let step = |at, sectors, buf| rig.step(writes, at, sectors, buf);
            let done = reserve.through(writes, Sector(at), &mut data, step).await;
            *out.borrow_mut() = Some((data, done));
        });
        slot
    }

    fn pattern(salt: usize) -> Vec<u8> {
        (0..BYTES).map(|i| ((i / 7 + salt) % 251) as u8).collect()
    }

    #[test]
    fn a_transfer_goes_in_steps_and_two_take_turns() {
        let (exec, rig) = (Executor::new(), rig(u64::MAX));
        let sectors = (BYTES / SECTOR_BYTES) as u64;
        let writes = [0, sectors].map(|at| start(&exec, &rig, true, at, pattern(at as usize)));
        while writes.iter().any(|done| done.borrow().is_none()) {
            exec.poll(0, 1);
        }
        let asked: Vec<(u64, u64)> = rig.0.asked.take();
        let one = [(0, 128), (128, 128), (256, 128), (384, 3)];
        let both = one.into_iter().chain(one.map(|(at, n)| (at + sectors, n)));
        assert_eq!(
            asked,
            both.collect::<Vec<_>>(),
            "never mixed: the memory is one"
        );
        for at in [0, sectors] {
            let read = start(&exec, &rig, false, at, vec![0; BYTES]);
            while read.borrow().is_none() {
                exec.poll(0, 1);
            }
            assert!(
                read.take() == Some((pattern(at as usize), Ok(()))),
                "from {at}"
            );
        }
    }

    #[test]
    fn the_first_step_that_fails_ends_a_transfer_and_gives_the_memory_back() {
        let (exec, rig) = (Executor::new(), rig(256));
        for _ in 0..2 {
            let write = start(&exec, &rig, true, 0, pattern(1));
            while write.borrow().is_none() {
                exec.poll(0, 1);
            }
            let done = write.take().map(|(_, done)| done);
            assert_eq!(done, Some(Err(IoError::Failed)));
            assert_eq!(rig.0.asked.take(), [(0, 128), (128, 128), (256, 128)]);
        }
        let none = (rig.0, Rc::new(Reserve::default()));
        let write = start(&exec, &none, true, 0, pattern(1));
        exec.poll(0, 9);
        let done = write.take().map(|(_, done)| done);
        assert_eq!(done, Some(Err(IoError::NoMemory)));
    }
}
