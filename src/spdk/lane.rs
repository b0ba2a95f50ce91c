//! The hot path's way to the devices: SPDK's side of [`Lane`].
//!
//! ```text
//!  bdev layer → submit(channel, io) → Front ─┬─ transfer → Part → spdk_bdev_readv/writev ─┐
//!                                            ├─ fill_read/fill_write → Part ──────────────┤
//!  bdev layer ← spdk_bdev_io_complete ←── settle ←── Front::part_done/fill_done ←─ part_ended
//! ```
//!
//! - Everything of a lane belongs to the thread of its channel. No lock is taken and nothing is
//!   allocated once the pools have grown to what the load needs: a `Part` per operation in
//!   flight is reused, and a request lives in the context of its spdk_bdev_io.
//! - The front is never entered from within a call that it makes: what ends at once is put on a
//!   list (`ended`), and so are completed host I/Os (`completed`), because completing one lets the
//!   host submit the next from within. [`LaneState::settle`] works the lists off afterwards, each
//!   time only as much as was on them when it began, so that it ends.
//! - An operation that finds no place in the device's own queue waits at its [`Gate`]; one that finds
//!   no spdk_bdev_io stands in line here and is tried again at every poll. SPDK's own line for that
//!   would not do: it moves only when an I/O of the same thread ends, and this thread may have none
//!   while others hold them all. Neither is an error.
//! - While others of the thread stand in SPDK's line, nobody else of it gets an I/O. Those others may
//!   be host I/Os for the very volume whose own wait here: nothing would move again. So operations
//!   that have had no success for long go round by the owner thread, where nobody stands in line.
//! - A device may want its memory aligned, the host's need not be: SPDK copies it then, through buffers
//!   of a size that a long operation can exceed, and in 20.07 it fails for that. So what SPDK copies
//!   is done in steps of `COPIED_SECTORS_MAX`, one after the other.

mod io;
mod round;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use super::bounce::{Bounce, BouncePool};
use super::channel::Channel;
use super::disk::{RawDevice, give_flush};
use super::flush::Way;
use super::gate::{self, Entrance, Gate};
use super::{ended, module, sys, thread};
use crate::disk::IoError;
use crate::request::front::FILLS_MAX;
use crate::request::hold::Line;
use crate::request::lane::{Direction, Ended, Lane, Outcome, Side};
use crate::units::{SECTOR_SHIFT, Sector};

pub use io::{Io, IoCtx, IoList};

/// Pieces of host memory that a part of an I/O names without a list of its own on the heap.
const IOVS_INLINE: usize = 4;
/// Polls without success after which operations go round by the owner thread: about a millisecond.
const STUCK_POLLS_MAX: u32 = 2048;
/// Sectors of one operation whose memory SPDK copies. It has buffers of 64 KiB, in which the alignment
/// must find room too.
const COPIED_SECTORS_MAX: u32 = 64;
/// Alignment in bytes that SPDK's buffers have room for beside 64 KiB.
const SPARE_ALIGN_BYTES: usize = 512;
/// Parts that a channel starts with.
const PARTS_AT_FIRST: usize = 64;

/// One device on one thread.
pub struct DeviceChannel {
    device: RawDevice,
    channel: *mut sys::spdk_io_channel,
    /// Where its queue is shared with other devices.
    gate: Option<Entrance>,
}

impl DeviceChannel {
    /// This thread's channel to the device; `None` when there is no memory.
    pub fn open(device: RawDevice) -> Option<DeviceChannel> {
        // SAFETY: whoever handed the RawDevice to this thread keeps the descriptor open until
        // all channels of its volume are gone.
        let channel = unsafe { sys::spdk_bdev_get_io_channel(device.desc) };
        (!channel.is_null()).then(|| DeviceChannel {
            device,
            channel,
            gate: device
                .shared_cut
                .map(|_| Gate::here().entrance(device.bdev)),
        })
    }
}

impl DeviceChannel {
    /// An operation is over, or did not begin.
    fn leave(&self, part: &Part) {
        if let Some(gate) = &self.gate {
            gate.leave(part.places(&self.device));
        }
    }
}

impl Drop for DeviceChannel {
    fn drop(&mut self) {
        // SAFETY: got on this thread (the value is not Send), given back once, nothing in flight.
        unsafe { sys::spdk_put_io_channel(self.channel) };
    }
}

#[derive(Clone, Copy)]
enum Action {
    Read,
    Write,
    Zeroes,
    Unmap,
    Flush,
}

/// How pieces of the host's memory are named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// As the host has them.
    AsItIs,
    /// Each cut after its first byte, so that SPDK copies them.
    ToBeCopied,
}

/// Whom an operation belongs to.
#[derive(Clone, Copy)]
enum Target {
    Io(Io, u8),
    Fill(u16),
}

/// One operation in flight. What every one needs is on the first cache line: host data push all
/// of this out of the nearer caches.
#[repr(C, align(64))]
struct Part {
    channel: *const Channel,
    target: Target,
    /// The range, in blocks of the device.
    block: u64,
    blocks: u64,
    /// The memory: the host's own list, or one of the two below.
    iovs: *mut sys::iovec,
    iovcnt: i32,
    side: Side,
    action: Action,
    /// How often it was given to the device again.
    tries: u8,
    /// How it ended, for one that went the way round by the owner thread.
    ended: Ended,
    /// What is left of a transfer that is done in steps: sectors into the host's I/O, and how many.
    rest: (u32, u32),
    inline: [sys::iovec; IOVS_INLINE],
    list: Vec<sys::iovec>,
    /// The way round by the owner thread: the device, and where it came from.
    device: Option<RawDevice>,
    home: *mut sys::spdk_thread,
}

const _: () = assert!(offset_of!(Part, inline) <= 64);

const NO_IOV: sys::iovec = sys::iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

/// What a lane is made of; shared by the front's [`SpdkLane`] and the channel.
pub struct LaneState {
    channel: Cell<*const Channel>,
    cache: Option<DeviceChannel>,
    backing: Option<DeviceChannel>,
    /// Boxed, because SPDK gets their addresses: a part stays where it is.
    #[allow(clippy::vec_box)]
    idle_parts: RefCell<Vec<Box<Part>>>,
    parts_in_flight: Cell<usize>,
    /// Operations that ended in the call that started them, with their result.
    ended: RefCell<VecDeque<(Box<Part>, Ended)>>,
    /// Operations to be given to their device again, each with the time for that in µs. Bounded by
    /// the operations in flight.
    again: RefCell<VecDeque<(u64, *mut Part)>>,
    /// Operations that found no I/O of SPDK's free. Bounded by the operations in flight.
    starved: RefCell<VecDeque<*mut Part>>,
    /// Polls since any of them had success.
    stuck_polls: Cell<u32>,
    /// Host I/Os that wait to be handed back to the bdev layer.
    completed: IoList,
    settling: Cell<bool>,
    fills: RefCell<Vec<Option<Bounce>>>,
    bounces: BouncePool,
}

impl LaneState {
    /// A lane to these devices; operations on one that is missing fail.
    pub fn new(cache: Option<DeviceChannel>, backing: Option<DeviceChannel>) -> Rc<LaneState> {
        Rc::new(LaneState {
            channel: Cell::new(ptr::null()),
            cache,
            backing,
            idle_parts: RefCell::new((0..PARTS_AT_FIRST).map(|_| Part::new()).collect()),
            parts_in_flight: Cell::new(0),
            ended: RefCell::new(VecDeque::with_capacity(PARTS_AT_FIRST)),
            again: RefCell::default(),
            starved: RefCell::default(),
            stuck_polls: Cell::new(0),
            completed: IoList::default(),
            settling: Cell::new(false),
            fills: RefCell::new(vec![None; FILLS_MAX.into()]),
            bounces: BouncePool::default(),
        })
    }

    /// Tells the lane whose it is, before the first operation. The channel outlives all of them.
    pub fn bind(&self, channel: *const Channel) {
        self.channel.set(channel);
    }

    /// Whether no operation is in flight and nothing waits to be settled.
    pub fn is_idle(&self) -> bool {
        self.parts_in_flight.get() == 0 && self.completed.is_empty()
    }

    /// Hands over what has ended since: see the head of this file. Returns whether there was any.
    pub fn settle(&self, channel: &Channel) -> bool {
        if self.settling.replace(true) {
            return false;
        }
        let ended = self.ended.borrow().len();
        for _ in 0..ended {
            let next = self.ended.borrow_mut().pop_front();
            if let Some((part, ended)) = next {
                self.hand_over(channel, part, ended);
            }
        }
        let completed = self.completed.take();
        let busy = ended > 0 || !completed.is_empty();
        while let Some(io) = completed.pop() {
            let outcome = io.ctx().outcome.get();
            // SAFETY: each I/O gets onto the list once, and nobody uses its context afterwards.
            unsafe { sys::bcache_io_complete(io.head().bdev_io, outcome) };
        }
        self.settling.set(false);
        busy
    }

    fn hand_over(&self, channel: &Channel, part: Box<Part>, ended: Ended) {
        if ended.is_ok() && part.rest.1 > 0 {
            return self.next_step(part);
        }
        if let Some(us) = ended::again_after_us(ended, part.tries) {
            return self.put_off(part, us);
        }
        let target = part.target;
        self.parts_in_flight.set(self.parts_in_flight.get() - 1);
        self.idle_parts.borrow_mut().push(part);
        channel.with_front(|front| match target {
            Target::Io(io, part) => front.part_done(io, part, ended),
            Target::Fill(fill) => front.fill_done(fill, ended),
        });
    }

    /// Keeps a part that is to be given to its device again.
    #[cold]
    fn put_off(&self, mut part: Box<Part>, us: u64) {
        part.tries += 1;
        let at_us = thread::now_us() + us;
        self.again
            .borrow_mut()
            .push_back((at_us, Box::into_raw(part)));
    }

    /// Gives those parts to their devices again whose time has come.
    #[cold]
    fn try_again(&self) {
        let now_us = thread::now_us();
        for _ in 0..self.again.borrow().len() {
            let Some((at_us, raw)) = self.again.borrow_mut().pop_front() else {
                break;
            };
            // SAFETY: the part is a box that waited here, and is nobody else's.
            let device = self.device(unsafe { (*raw).side });
            match device {
                Some(device) if at_us <= now_us => self.submit(raw, device),
                _ => self.again.borrow_mut().push_back((at_us, raw)),
            }
        }
    }

    /// Starts a transfer between a range of the device and the host's memory.
    fn transfer(&self, mut part: Box<Part>, io: &Io, at: Sector, host_sectors: u32, sectors: u32) {
        let Ok(cut) = self.cut_of(&part, io) else {
            return self.end(part, Err(IoError::Invalid));
        };
        part.map(io, host_sectors, sectors, cut);
        let mut step = sectors;
        if sectors > COPIED_SECTORS_MAX && self.is_copied(&part) {
            step = COPIED_SECTORS_MAX;
            part.map(io, host_sectors, step, cut);
            part.rest = (host_sectors + step, sectors - step);
        }
        self.start(part, at, u64::from(step));
    }

    /// How the memory of a part is named whose pieces may be no whole blocks of the device. Of a device
    /// that wants whole sectors SPDK looks at where pieces begin alone; a piece that is cut after its
    /// first byte has it copied. Others take what is as aligned in length as they want it to begin.
    #[inline]
    fn cut_of(&self, part: &Part, io: &Io) -> Result<Cut, IoError> {
        let Some(device) = self.device(part.side) else {
            return Ok(Cut::AsItIs);
        };
        let (bits, align) = (io.ctx().length_bits.get(), device.device.align_bytes);
        let block_bytes = (1 << SECTOR_SHIFT) << device.device.block_shift;
        if align == 1 || bits & (block_bytes - 1) == 0 {
            Ok(Cut::AsItIs)
        } else if align >= 1 << SECTOR_SHIFT {
            Ok(Cut::ToBeCopied)
        } else if bits & (align - 1) == 0 {
            Ok(Cut::AsItIs)
        } else {
            Err(IoError::Invalid)
        }
    }

    /// Whether SPDK copies the memory of a part, through a buffer that may be too short for it.
    fn is_copied(&self, part: &Part) -> bool {
        let device = self.device(part.side);
        let align_bytes = device.map_or(1, |device| device.device.align_bytes);
        // SAFETY: whoever mapped the memory named as many elements as there are, and they stay.
        let start = |i: usize| unsafe { (*part.iovs.add(i)).iov_base.addr() };
        let mut starts = (0..part.iovcnt as usize).map(start);
        align_bytes > SPARE_ALIGN_BYTES && starts.any(|start| start % align_bytes != 0)
    }

    /// Goes on with a transfer that is done in steps.
    #[cold]
    fn next_step(&self, mut part: Box<Part>) {
        let (Target::Io(io, _), Some(device)) = (part.target, self.device(part.side)) else {
            unreachable!("what is done in steps is a host's, on a device");
        };
        let at = Sector((part.block + part.blocks) << device.device.block_shift);
        let (host_sectors, sectors) = std::mem::take(&mut part.rest);
        self.transfer(part, &io, at, host_sectors, sectors);
    }

    fn device(&self, side: Side) -> Option<&DeviceChannel> {
        match side {
            Side::Cache => self.cache.as_ref(),
            Side::Backing => self.backing.as_ref(),
        }
    }

    fn part(&self, target: Target, side: Side, action: Action) -> Box<Part> {
        let idle = self.idle_parts.borrow_mut().pop();
        let mut part = idle.unwrap_or_else(Part::new);
        self.parts_in_flight.set(self.parts_in_flight.get() + 1);
        part.channel = self.channel.get();
        part.target = target;
        part.side = side;
        part.action = action;
        (part.iovs, part.iovcnt) = (ptr::null_mut(), 0);
        part.rest = (0, 0);
        part.tries = 0;
        part
    }

    /// Ends a part that was not given to SPDK, later.
    fn end(&self, part: Box<Part>, ended: Ended) {
        self.ended.borrow_mut().push_back((part, ended));
    }

    /// Starts a part on a range of sectors.
    fn start(&self, mut part: Box<Part>, at: Sector, sectors: u64) {
        let Some(device) = self.device(part.side) else {
            return self.end(part, Err(IoError::Gone));
        };
        let shift = device.device.block_shift;
        debug_assert_eq!((at.0 | sectors) & ((1 << shift) - 1), 0, "not whole blocks");
        part.block = at.0 >> shift;
        part.blocks = sectors >> shift;
        self.submit(Box::into_raw(part), device);
    }

    /// Gives a part to SPDK, now or when the device has a place for it.
    fn submit(&self, raw: *mut Part, device: &DeviceChannel) {
        let enters = match &device.gate {
            // SAFETY: the box is nobody else's until `part_admitted` is called with it.
            Some(gate) => unsafe {
                gate.enter((*raw).places(&device.device), part_admitted, raw.cast())
            },
            None => true,
        };
        if enters {
            self.send(raw, device);
        }
    }

    fn send(&self, raw: *mut Part, device: &DeviceChannel) {
        // SAFETY: the descriptor is open and the channel is this thread's.
        let rc = unsafe { give(raw, &device.device, device.channel, part_ended) };
        if rc == 0 {
            return;
        }
        // SAFETY: not submitted, so the box is still ours.
        device.leave(unsafe { &*raw });
        if rc == -sys::ENOMEM {
            return self.starved.borrow_mut().push_back(raw);
        }
        // SAFETY: not submitted, so the box is still ours.
        self.end(unsafe { Box::from_raw(raw) }, Err(ended::refused(rc)));
    }

    /// Tries again what found no I/O of SPDK's free, until the first that finds none again. Returns
    /// whether anything was tried with success.
    pub fn retry_starved(&self) -> bool {
        if !self.again.borrow().is_empty() {
            self.try_again();
        }
        let waiting = self.starved.borrow().len();
        let mut moved = false;
        for _ in 0..waiting {
            let Some(raw) = self.starved.borrow_mut().pop_front() else {
                break;
            };
            let others = self.starved.borrow().len();
            // SAFETY: the part is a box that stood in line here, and is nobody else's.
            let side = unsafe { (*raw).side };
            if let Some(device) = self.device(side) {
                self.submit(raw, device);
            }
            if self.starved.borrow().len() > others {
                break;
            }
            moved = true;
        }
        let stuck = waiting > 0 && !moved;
        self.stuck_polls
            .set(if stuck { self.stuck_polls.get() + 1 } else { 0 });
        if self.stuck_polls.get() > STUCK_POLLS_MAX {
            self.stuck_polls.set(STUCK_POLLS_MAX);
            self.go_round();
        }
        moved
    }

    /// Sends the first that stands in line round by the owner thread.
    fn go_round(&self) {
        let Some(raw) = self.starved.borrow_mut().pop_front() else {
            return;
        };
        // SAFETY: the part stood in line here and is nobody else's; it is the owner's until
        // `round_home` gives it back. The volume's channel, and with it the device, stays as long.
        unsafe {
            (*raw).device = self.device((*raw).side).map(|device| device.device);
            (*raw).home = thread::current();
            module::send_to_owner(round::begin, raw.cast());
        }
    }

    fn fill_transfer(&self, fill: u16, side: Side, action: Action, at: Sector, sectors: u32) {
        let mut part = self.part(Target::Fill(fill), side, action);
        part.inline[0] = sys::iovec {
            iov_base: self.bounce(fill).start().cast(),
            iov_len: (sectors as usize) << SECTOR_SHIFT,
        };
        (part.iovs, part.iovcnt) = (part.inline.as_mut_ptr(), 1);
        self.start(part, at, u64::from(sectors));
    }

    fn bounce(&self, fill: u16) -> Bounce {
        self.fills.borrow()[usize::from(fill)].expect("a fill that was begun has its buffer")
    }
}

impl Part {
    /// How many places at a queue that its device shares it needs.
    fn places(&self, device: &RawDevice) -> usize {
        let shift = device.block_shift + SECTOR_SHIFT;
        match (self.action, device.shared_cut) {
            (Action::Read | Action::Write | Action::Zeroes, Some(cut)) => {
                gate::places(self.block << shift, self.blocks << shift, cut)
            }
            _ => 1,
        }
    }

    fn new() -> Box<Part> {
        Box::new(Part {
            channel: ptr::null(),
            target: Target::Fill(0),
            side: Side::Backing,
            action: Action::Read,
            block: 0,
            blocks: 0,
            iovs: ptr::null_mut(),
            iovcnt: 0,
            rest: (0, 0),
            inline: [NO_IOV; IOVS_INLINE],
            list: Vec::new(),
            device: None,
            home: ptr::null_mut(),
            tries: 0,
            ended: Ok(()),
        })
    }

    /// Names the host's memory that belongs to this part, and no more of it.
    fn map(&mut self, io: &Io, host_sectors: u32, sectors: u32, cut: Cut) {
        let head = io.head();
        let (offset, bytes) = (
            (host_sectors as usize) << SECTOR_SHIFT,
            (sectors as usize) << SECTOR_SHIFT,
        );
        let is_whole = host_sectors == 0 && u64::from(sectors) == io.sectors.get();
        if is_whole && io.ctx().fills_list.get() && cut == Cut::AsItIs {
            (self.iovs, self.iovcnt) = (head.iovs, head.iovcnt as i32);
            return;
        }
        let (inline, list) = (&mut self.inline, &mut self.list);
        let mut count = 0;
        list.clear();
        let mut name = |start: *mut u8, bytes: usize| {
            let iov = sys::iovec {
                iov_base: start.cast(),
                iov_len: bytes,
            };
            if count == IOVS_INLINE {
                list.extend_from_slice(&inline[..]);
            }
            match inline.get_mut(count) {
                Some(slot) => *slot = iov,
                None => list.push(iov),
            }
            count += 1;
        };
        io.host().pieces(offset, bytes, |start, bytes| {
            if cut == Cut::AsItIs || bytes == 1 {
                return name(start, bytes);
            }
            name(start, 1);
            name(start.wrapping_add(1), bytes - 1);
        });
        self.iovs = if count <= IOVS_INLINE {
            inline.as_mut_ptr()
        } else {
            list.as_mut_ptr()
        };
        self.iovcnt = count as i32;
    }
}

type PartEndedFn = unsafe extern "C" fn(*mut sys::spdk_bdev_io, bool, *mut c_void);

unsafe extern "C" fn part_ended(bdev_io: *mut sys::spdk_bdev_io, ok: bool, arg: *mut c_void) {
    // SAFETY: `arg` is the box given away in `submit` and comes back once; the channel outlives
    // its parts.
    let (part, channel) = unsafe {
        let part = Box::from_raw(arg.cast::<Part>());
        let channel = &*part.channel;
        (part, channel)
    };
    channel.with_lane(|lane| {
        let device = lane.device(part.side).expect("it did the operation");
        // SAFETY: the I/O was completed so and is ours to free, once. Devices that want more care
        // share their queue.
        let ended = unsafe {
            let ended = ended::of(bdev_io, ok);
            match device.gate {
                Some(_) => sys::bcache_free_io(bdev_io),
                None => sys::spdk_bdev_free_io(bdev_io),
            }
            ended
        };
        device.leave(&part);
        lane.hand_over(channel, part, ended);
        lane.settle(channel);
    });
}

/// Gives a part to SPDK. Returns 0, or what went wrong, and the part is still the caller's.
///
/// # Safety
/// `raw` is the box of a part that nobody else holds until `ended` is called with it, which SPDK never
/// does within the submission; its memory list and the memory stay until then. The descriptor is
/// open and the channel is this thread's.
unsafe fn give(
    raw: *mut Part,
    device: &RawDevice,
    ch: *mut sys::spdk_io_channel,
    ended: PartEndedFn,
) -> i32 {
    let desc = device.desc;
    // SAFETY: by contract.
    unsafe {
        let part = &mut *raw;
        let (at, n, cb) = (part.block, part.blocks, Some(ended));
        let (iovs, count, arg) = (part.iovs, part.iovcnt, raw.cast::<c_void>());
        match part.action {
            Action::Read => sys::spdk_bdev_readv_blocks(desc, ch, iovs, count, at, n, cb, arg),
            Action::Write => sys::spdk_bdev_writev_blocks(desc, ch, iovs, count, at, n, cb, arg),
            Action::Zeroes => sys::spdk_bdev_write_zeroes_blocks(desc, ch, at, n, cb, arg),
            Action::Unmap => sys::spdk_bdev_unmap_blocks(desc, ch, at, n, cb, arg),
            Action::Flush => give_flush(device.flush_way(), desc, ch, (at, n), cb, arg),
        }
    }
}

unsafe extern "C" fn part_admitted(arg: *mut c_void) {
    // SAFETY: the part waited at the gate and is ours again.
    unsafe { go_on(arg.cast(), LaneState::send) };
}

/// Goes on with a part that waited.
///
/// # Safety
/// `raw` is the box of a part of this thread, and nobody else's.
unsafe fn go_on(raw: *mut Part, how: fn(&LaneState, *mut Part, &DeviceChannel)) {
    // SAFETY: by contract; the channel outlives its parts.
    let (channel, side) = unsafe { (&*(*raw).channel, (*raw).side) };
    channel.with_lane(|lane| {
        if let Some(device) = lane.device(side) {
            how(lane, raw, device);
        }
    });
}

/// The front's handle to its lane.
pub struct SpdkLane(pub Rc<LaneState>);

impl Lane for SpdkLane {
    type Io = Io;

    fn token(&self, io: &Io) -> u64 {
        io.0.as_ptr() as u64
    }

    fn io(&self, token: u64) -> Io {
        Io(NonNull::new(token as *mut IoCtx).expect("tokens are pointers"))
    }

    fn transfer(
        &self,
        io: &Io,
        part: u8,
        side: Side,
        direction: Direction,
        at: Sector,
        host_sectors: u32,
        sectors: u32,
    ) {
        let action = match direction {
            Direction::Read => Action::Read,
            Direction::Write => Action::Write,
        };
        let part = self.0.part(Target::Io(*io, part), side, action);
        self.0.transfer(part, io, at, host_sectors, sectors);
    }

    fn zero_host(&self, io: &Io, host_sectors: u32, sectors: u32) {
        let offset = (host_sectors as usize) << SECTOR_SHIFT;
        let bytes = (sectors as usize) << SECTOR_SHIFT;
        io.host().pieces(offset, bytes, |start, bytes| {
            // SAFETY: the piece lies in the host's memory, which is the I/O's until it ends.
            unsafe { ptr::write_bytes(start, 0, bytes) };
        });
    }

    fn backing_zeroes(&self, io: &Io, part: u8, at: Sector, sectors: u64) {
        let target = Target::Io(*io, part);
        let part = self.0.part(target, Side::Backing, Action::Zeroes);
        self.0.start(part, at, sectors);
    }

    fn backing_unmap(&self, io: &Io, part: u8, at: Sector, sectors: u64) {
        let target = Target::Io(*io, part);
        let part = self.0.part(target, Side::Backing, Action::Unmap);
        match &self.0.backing {
            Some(device) if !device.device.can_unmap => self.0.end(part, Ok(())),
            _ => self.0.start(part, at, sectors),
        }
    }

    fn backing_flush(&self, io: &Io, part: u8) {
        let target = Target::Io(*io, part);
        let part = self.0.part(target, Side::Backing, Action::Flush);
        match &self.0.backing {
            Some(device) if device.device.flush_way() == Way::None => self.0.end(part, Ok(())),
            Some(device) => {
                // SAFETY: the descriptor is open, so the bdev is there.
                let blocks = unsafe { sys::spdk_bdev_get_num_blocks(device.device.bdev) };
                let sectors = blocks << device.device.block_shift;
                self.0.start(part, Sector(0), sectors);
            }
            None => self.0.end(part, Err(IoError::Gone)),
        }
    }

    fn complete(&self, io: Io, outcome: Outcome) {
        io.ctx().outcome.set(match outcome {
            Outcome::Success => sys::BCACHE_SUCCESS,
            Outcome::Failed => sys::BCACHE_FAILED,
            Outcome::NoSpace => sys::BCACHE_NO_SPACE,
        });
        self.0.completed.push(io);
    }

    fn fill_begin(&self, fill: u16, sectors: u32) -> bool {
        let bounce = self.0.bounces.take(sectors);
        let begun = bounce.is_some();
        if begun {
            self.0.fills.borrow_mut()[usize::from(fill)] = bounce;
        }
        begun
    }

    fn fill_read(&self, fill: u16, at: Sector, sectors: u32) {
        self.0
            .fill_transfer(fill, Side::Backing, Action::Read, at, sectors);
    }

    fn fill_copy(&self, fill: u16, io: &Io, host_sectors: u32, sectors: u32) {
        let offset = (host_sectors as usize) << SECTOR_SHIFT;
        let bytes = (sectors as usize) << SECTOR_SHIFT;
        let mut from = self.0.bounce(fill).start().cast_const();
        io.host().pieces(offset, bytes, |start, bytes| {
            // SAFETY: the fill's buffer has at least the sectors that were asked for, and the
            // piece lies in the host's memory, which is the I/O's until it ends.
            unsafe { ptr::copy_nonoverlapping(from, start, bytes) };
            from = from.wrapping_add(bytes);
        });
    }

    fn fill_write(&self, fill: u16, at: Sector, sectors: u32) {
        self.0
            .fill_transfer(fill, Side::Cache, Action::Write, at, sectors);
    }

    fn fill_end(&self, fill: u16) {
        if let Some(bounce) = self.0.fills.borrow_mut()[usize::from(fill)].take() {
            self.0.bounces.give(bounce);
        }
    }
}
