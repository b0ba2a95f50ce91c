//! A volume on one SPDK thread: its front, its lane, and the poller that drives them.
//!
//! - SPDK makes a channel when somebody on a thread first uses the volume, and drops it after the
//!   last host I/O there. Fills may still be under way then: the channel lives on, without SPDK's
//!   knowledge but counted in its volume, until they have ended.
//! - *Quiesce*: new host I/O is held, in the order of its coming, until *resume*; the step is done
//!   when nothing is in flight on any thread. SPDK takes a channel off its list before it says so
//!   here, so a walk over the list may miss one with fills under way: what ends the step is that no
//!   front is *busy* ([`Volume::busy`]), not that the walk is over. *Resume* builds the front anew for what the volume is
//!   then ([`Shape`]), and lets the held I/O in. A channel that is made in between starts held.
//! - A front has channels to all devices of its volume, or there is none: host I/O fails then, and each
//!   tries to build one. A front that is there is closed before it is dropped, always.
//! - A reset of the volume fails what is held, waits until nothing is in flight, and touches no device:
//!   other volumes and the cache's own metadata use the same ones. So no I/O from before the reset
//!   reaches a device after its answer.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::RawDevice;
use super::lane::{DeviceChannel, Io, IoList, LaneState, SpdkLane};
use super::poller::Poller;
use super::sys;
use crate::request::Kind;
use crate::request::front::Front;
use crate::request::volume::VolumeShared;

/// What fronts of a volume are built from.
#[derive(Clone)]
pub struct Shape {
    /// The engine's part.
    pub shared: Arc<VolumeShared>,
    /// The cache device.
    pub cache: Option<RawDevice>,
    /// The backing device.
    pub backing: Option<RawDevice>,
    /// Counts the shapes.
    pub version: u64,
    /// Whether host I/O is to wait.
    pub held: bool,
}

/// What all threads know of a volume. Its address is SPDK's handle of it (io_device), from the
/// registration of the volume's bdev until all of its channels are gone.
pub struct Volume {
    /// log2 of the sectors in a block of the volume.
    block_shift: u32,
    shape: Mutex<Shape>,
    /// Channels whose front is not closed.
    fronts: AtomicUsize,
    /// Those of them that may have I/O under way: they were not told to hold it, or are not idle yet.
    busy: AtomicUsize,
}

// SAFETY: the raw pointers in the shape's devices are descriptors and bdevs, which SPDK allows to
// be used on any thread; they stay open for as long as the volume has fronts.
unsafe impl Send for Volume {}
// SAFETY: as above; everything that changes is behind a mutex or atomic.
unsafe impl Sync for Volume {}

impl Volume {
    /// A volume of this shape.
    pub fn new(shape: Shape) -> Volume {
        Volume {
            block_shift: shape.shared.block_sectors.ilog2(),
            shape: Mutex::new(shape),
            fronts: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        }
    }

    /// What its fronts are built from. Not on the path of an I/O.
    pub fn shape(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How many threads have a front that is not closed.
    pub fn fronts(&self) -> usize {
        self.fronts.load(Ordering::Acquire)
    }

    /// How many of them may have I/O under way. After host I/O is to be held in the shape, this only
    /// falls: a front counts here from before it exists until it is idle and holds all new I/O.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    /// Counts a new front, and says what it is built from. One step with the look at the shape: a
    /// front that is not told here to hold host I/O is seen as busy by whoever has it held next.
    fn enter(&self) -> Shape {
        let shape = self.shape();
        self.fronts.fetch_add(1, Ordering::AcqRel);
        if !shape.held {
            self.busy.fetch_add(1, Ordering::AcqRel);
        }
        shape.clone()
    }

    /// A front is no more.
    fn leave(&self, was_busy: bool) {
        if was_busy {
            self.busy.fetch_sub(1, Ordering::AcqRel);
        }
        self.fronts.fetch_sub(1, Ordering::AcqRel);
    }

    /// SPDK's handle of the volume.
    pub fn io_device(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

type SpdkFront = Front<SpdkLane>;

/// What a step over all channels does with one, once nothing is in flight there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// What is held fails: a reset.
    Reset,
    /// The front counts as busy no more: it holds all new I/O.
    Quiet,
    /// The new shape is taken on.
    Resume,
}

/// A step of all channels that has reached this one.
#[derive(Clone, Copy)]
struct Waiting {
    iter: *mut sys::spdk_io_channel_iter,
    then: Then,
}

/// The volume on this thread.
pub struct Channel {
    volume: Arc<Volume>,
    front: RefCell<Option<(SpdkFront, Rc<LaneState>)>>,
    version: Cell<u64>,
    held: Cell<bool>,
    /// Whether it counts in [`Volume::busy`].
    busy: Cell<bool>,
    /// Whether it was said that there is no front.
    is_failure_told: Cell<bool>,
    held_ios: IoList,
    /// Iterations over all channels that wait for this one to be idle.
    waiting: RefCell<Vec<Waiting>>,
    poller: RefCell<Option<Poller>>,
    /// SPDK has dropped the channel.
    dropped: Cell<bool>,
}

impl Channel {
    /// Makes the channel of this thread; `None` when there is no memory, or the cache set has as
    /// many users as it can have.
    fn new(volume: Arc<Volume>) -> Option<Rc<Channel>> {
        let channel = Rc::new(Channel {
            volume,
            front: RefCell::new(None),
            version: Cell::new(0),
            held: Cell::new(true),
            busy: Cell::new(false),
            is_failure_told: Cell::new(false),
            held_ios: IoList::default(),
            waiting: RefCell::default(),
            poller: RefCell::default(),
            dropped: Cell::new(false),
        });
        let polled = channel.clone();
        let poller = Poller::register(c"bcache_volume", 0, move || polled.poll())?;
        channel.poller.replace(Some(poller));
        let shape = channel.volume.enter();
        channel.version.set(shape.version);
        channel.held.set(shape.held);
        channel.busy.set(!shape.held);
        // The front comes last: what it takes of its cache set it gives back by being polled.
        if !shape.held && !channel.build(&shape) {
            channel.poller.take();
            channel.volume.leave(true);
            return None;
        }
        Some(channel)
    }

    /// Builds the front. False when it cannot be had; host I/O then fails.
    fn build(&self, shape: &Shape) -> bool {
        self.version.set(shape.version);
        let made = self.make_front(shape);
        let is_made = made.is_ok();
        if let Err(why) = &made {
            if !self.is_failure_told.replace(true) {
                log::error!("{}: its I/O fails on a thread: {why}", shape.shared.name);
            }
        }
        self.front.replace(made.ok());
        self.is_failure_told.set(!is_made);
        is_made
    }

    fn make_front(&self, shape: &Shape) -> Result<(SpdkFront, Rc<LaneState>), &'static str> {
        const NO_CHANNEL: &str = "no memory for a channel to its device";
        let open = |device: Option<RawDevice>| match device {
            Some(device) => DeviceChannel::open(device).map(Some).ok_or(NO_CHANNEL),
            None => Ok(None),
        };
        let lane = LaneState::new(open(shape.cache)?, open(shape.backing)?);
        lane.bind(self);
        let front = Front::new(SpdkLane(lane.clone()), shape.shared.clone());
        let front = front.ok_or("its cache set serves as many volumes and threads as it can")?;
        Ok((front, lane))
    }

    /// Whether there is a front, if need be a new one.
    #[cold]
    fn builds_again(&self) -> bool {
        let shape = self.volume.shape().clone();
        !shape.held && self.build(&shape)
    }

    /// Calls `f` with the front, if there is one.
    pub fn with_front(&self, f: impl FnOnce(&SpdkFront)) {
        if let Some((front, _)) = &*self.front.borrow() {
            f(front);
        }
    }

    /// Calls `f` with the lane, if there is one.
    pub fn with_lane(&self, f: impl FnOnce(&LaneState)) {
        if let Some((_, lane)) = &*self.front.borrow() {
            f(lane);
        }
    }

    fn submit(&self, mut io: Io) {
        if self.held.get() {
            return self.held_ios.push(io);
        }
        let kind = match io.head().kind {
            sys::BCACHE_READ => Kind::Read,
            sys::BCACHE_WRITE => Kind::Write,
            sys::BCACHE_UNMAP => Kind::Unmap,
            sys::BCACHE_WRITE_ZEROES => Kind::WriteZeroes,
            _ => Kind::Flush,
        };
        if self.front.borrow().is_none() && !self.builds_again() {
            return answer(io, sys::BCACHE_FAILED);
        }
        let front = self.front.borrow();
        let Some((front, lane)) = &*front else {
            return answer(io, sys::BCACHE_FAILED);
        };
        let size_sectors = front.volume().size_sectors();
        match io.admit(kind, self.volume.block_shift, size_sectors) {
            Ok((_, 0)) if kind != Kind::Flush => answer(io, sys::BCACHE_SUCCESS),
            Ok((at, sectors)) if front.volume().holds_back(kind, at, sectors) => {
                self.held_ios.push(io);
            }
            Ok((at, sectors)) => {
                io.start(kind, at, sectors);
                io.must_be_durable(io.head().durable);
                front.submit(io);
                lane.settle(self);
            }
            Err(why) => {
                log::debug!("{}: an I/O is refused: {why:?}", front.volume().name);
                answer(io, sys::BCACHE_FAILED);
            }
        }
    }

    fn is_idle(&self) -> bool {
        match &*self.front.borrow() {
            Some((front, lane)) => front.is_idle() && lane.is_idle(),
            None => true,
        }
    }

    fn poll(&self) -> bool {
        let busy = match &*self.front.borrow() {
            Some((front, lane)) => lane.retry_starved() | (front.poll() > 0) | lane.settle(self),
            None => false,
        };
        if self.dropped.get() || !self.waiting.borrow().is_empty() {
            self.poll_idle();
        }
        busy
    }

    /// Does what waits for nothing to be in flight.
    fn poll_idle(&self) {
        while self.is_idle() {
            let Some(next) = self.waiting.borrow().first().copied() else {
                break;
            };
            match next.then {
                // What came since the step reached the channel.
                Then::Reset => self.fail_held(),
                Then::Quiet => self.be_quiet(),
                Then::Resume if self.take_on_shape() => {}
                Then::Resume => return,
            }
            self.waiting.borrow_mut().remove(0);
            // SAFETY: SPDK waits for this channel's answer, and gets it once.
            unsafe { sys::spdk_for_each_channel_continue(next.iter, 0) };
        }
        let done = self.dropped.get() && self.waiting.borrow().is_empty() && self.is_idle();
        if done && self.close_front() {
            // When this is the poller, its closure holds the channel until it returns.
            self.poller.take();
            self.volume.leave(self.busy.get());
        }
    }

    /// Ends all host I/O that is held: it has touched nothing.
    fn fail_held(&self) {
        let held = self.held_ios.take();
        while let Some(io) = held.pop() {
            answer(io, sys::BCACHE_FAILED);
        }
    }

    /// Nothing is in flight, and host I/O is held.
    fn be_quiet(&self) {
        if self.busy.replace(false) {
            self.volume.busy.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Closes an idle front. False when the owner's ring is full: try again.
    fn close_front(&self) -> bool {
        let closed = match &*self.front.borrow() {
            Some((front, _)) => front.close(),
            None => true,
        };
        if closed {
            self.front.replace(None);
        }
        closed
    }

    /// Takes on the volume's new shape and lets the held I/O in. False: try again.
    fn take_on_shape(&self) -> bool {
        let shape = self.volume.shape().clone();
        if shape.held {
            return true;
        }
        if !self.busy.replace(true) {
            self.volume.busy.fetch_add(1, Ordering::AcqRel);
        }
        if self.version.get() != shape.version || self.front.borrow().is_none() {
            if !self.close_front() {
                return false;
            }
            self.build(&shape);
        }
        self.held.set(false);
        let held = self.held_ios.take();
        while let Some(io) = held.pop() {
            self.submit(io);
        }
        true
    }

    /// Fails what is held, waits until nothing is in flight on any thread, and answers the reset.
    fn reset(&self, io: Io) {
        // SAFETY: the volume is registered as long as it has channels; the context is the I/O's
        // pointer, which stays until the reset is answered in `reset_done`.
        unsafe {
            sys::spdk_for_each_channel(
                self.volume.io_device(),
                Some(reset_each),
                io.into_raw().cast(),
                Some(reset_done),
            );
        }
    }
}

/// Answers a host I/O that no front has.
fn answer(io: Io, outcome: sys::bcache_outcome) {
    // SAFETY: the I/O was handed over, and is not used afterwards.
    unsafe { sys::bcache_io_complete(io.head().bdev_io, outcome) };
}

/// The channel that a step over all of them has reached.
///
/// # Safety
/// `iter` is a running iteration over a volume's channels.
unsafe fn channel_of<'a>(iter: *mut sys::spdk_io_channel_iter) -> &'a Channel {
    // SAFETY: by contract; the context of each channel holds what `create` put there.
    unsafe {
        let ctx = sys::bcache_channel_ctx(sys::spdk_io_channel_iter_get_channel(iter));
        &**ctx.cast::<*const Channel>()
    }
}

unsafe extern "C" fn reset_each(iter: *mut sys::spdk_io_channel_iter) {
    // SAFETY: SPDK calls this for each channel of the iteration, on the channel's thread.
    let channel = unsafe { channel_of(iter) };
    channel.fail_held();
    let then = Then::Reset;
    channel.waiting.borrow_mut().push(Waiting { iter, then });
}

unsafe extern "C" fn reset_done(iter: *mut sys::spdk_io_channel_iter, _status: i32) {
    // SAFETY: the context is the pointer given in `Channel::reset`; the I/O ends here.
    unsafe {
        let io = Io::from_raw(sys::spdk_io_channel_iter_get_ctx(iter).cast());
        sys::bcache_io_complete(io.head().bdev_io, sys::BCACHE_SUCCESS);
    }
}

/// Holds new host I/O on one channel; a step of the iteration that [`super::host`] starts.
///
/// # Safety
/// SPDK calls it for a channel of a volume, on the channel's thread.
pub unsafe extern "C" fn quiesce_each(iter: *mut sys::spdk_io_channel_iter) {
    // SAFETY: by contract.
    let channel = unsafe { channel_of(iter) };
    channel.held.set(true);
    let then = Then::Quiet;
    channel.waiting.borrow_mut().push(Waiting { iter, then });
}

/// Lets host I/O into one channel again; a step of the iteration that [`super::host`] starts.
///
/// # Safety
/// SPDK calls it for a channel of a volume, on the channel's thread.
pub unsafe extern "C" fn resume_each(iter: *mut sys::spdk_io_channel_iter) {
    // SAFETY: by contract.
    let channel = unsafe { channel_of(iter) };
    let then = Then::Resume;
    channel.waiting.borrow_mut().push(Waiting { iter, then });
}

/// Makes this thread's channel; for spdk_io_device_register.
///
/// # Safety
/// `volume` is a registered [`Volume::io_device`] of an `Arc`, `ctx` has room for a pointer.
pub unsafe extern "C" fn create(volume: *mut c_void, ctx: *mut c_void) -> i32 {
    // SAFETY: by contract; the registration keeps the Arc alive.
    let volume = unsafe {
        let volume = volume.cast_const().cast::<Volume>();
        Arc::increment_strong_count(volume);
        Arc::from_raw(volume)
    };
    let Some(channel) = Channel::new(volume) else {
        return -sys::ENOMEM;
    };
    // SAFETY: by contract.
    unsafe { ctx.cast::<*const Channel>().write(Rc::into_raw(channel)) };
    0
}

/// Lets this thread's channel go; for spdk_io_device_register.
///
/// # Safety
/// `ctx` is what [`create`] filled.
pub unsafe extern "C" fn destroy(_volume: *mut c_void, ctx: *mut c_void) {
    // SAFETY: by contract, and SPDK uses the context no more.
    let channel = unsafe { Rc::from_raw(ctx.cast::<*const Channel>().read()) };
    channel.dropped.set(true);
    channel.poll_idle();
}

/// Takes a host I/O; the `submit` of the module's table.
///
/// # Safety
/// `ctx` is a channel's context as [`create`] filled it, `io` as [`Io::take`] wants it, and this
/// is the channel's thread.
pub unsafe extern "C" fn submit(ctx: *mut c_void, io: *mut sys::bcache_io) {
    // SAFETY: by contract; SPDK keeps the channel while it has I/O.
    let (channel, io) = unsafe { (&**ctx.cast::<*const Channel>(), Io::take(io)) };
    if io.head().kind == sys::BCACHE_RESET {
        channel.reset(io);
    } else {
        channel.submit(io);
    }
}
