//! A volume on one SPDK thread: its front, its lane, and the poller that drives them.
//!
//! - SPDK makes a channel when somebody on a thread first uses the volume, and drops it after the
//!   last host I/O there. Fills may still be under way then: the channel lives on, without SPDK's
//!   knowledge but counted in its volume, until they have ended.
//! - What is held back, and the steps over all channels that wait for idleness, are
//!   [`crate::request::hold`]'s. SPDK takes a channel off its list before it says so here, so a walk over
//!   the list may miss one with fills under way: what ends a *quiesce* is that no front is *busy*
//!   ([`Fronts::busy`]), not that the walk is over. A channel that is made in between starts held.
//! - A front has channels to all devices of its volume, or there is none: host I/O fails then, and each
//!   tries to build one. A front that is there is closed before it is dropped, always.
//! - A reset of the volume touches no device: other volumes and the cache's own metadata use the same
//!   ones.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ops::Deref;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use super::disk::RawDevice;
use super::lane::{DeviceChannel, Io, IoList, LaneState, SpdkLane};
use super::poller::Poller;
use super::sys;
use crate::request::Kind;
use crate::request::admit::Way;
use crate::request::front::Front;
use crate::request::hold::{Fronts, Hold, Reactor, Shape, Step};
use crate::request::volume::VolumeShared;

/// What all threads know of a volume. Its address is SPDK's handle of it (io_device), from the
/// registration of the volume's bdev until all of its channels are gone.
pub struct Volume(Fronts<RawDevice>);

// SAFETY: the raw pointers in the shape's devices are descriptors and bdevs, which SPDK allows to
// be used on any thread; they stay open for as long as the volume has fronts.
unsafe impl Send for Volume {}
// SAFETY: as above; everything that changes is behind a mutex or atomic.
unsafe impl Sync for Volume {}

impl Deref for Volume {
    type Target = Fronts<RawDevice>;
    fn deref(&self) -> &Fronts<RawDevice> {
        &self.0
    }
}

impl Volume {
    /// A volume of these devices.
    pub fn new(
        shared: Arc<VolumeShared>,
        cache: Option<RawDevice>,
        backing: Option<RawDevice>,
    ) -> Volume {
        Volume(Fronts::new(shared, cache, backing))
    }

    /// SPDK's handle of the volume.
    pub fn io_device(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

type SpdkFront = Front<SpdkLane>;

/// A step over all channels that SPDK has brought to this one.
#[derive(Clone, Copy)]
pub struct Walk(*mut sys::spdk_io_channel_iter);

/// The volume on this thread.
pub struct Channel {
    volume: Arc<Volume>,
    front: RefCell<Option<(SpdkFront, Rc<LaneState>)>>,
    hold: Hold<IoList, Walk>,
    /// Whether it was said that there is no front.
    is_failure_told: Cell<bool>,
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
            hold: Hold::default(),
            is_failure_told: Cell::new(false),
            poller: RefCell::default(),
            dropped: Cell::new(false),
        });
        let polled = channel.clone();
        let poller = Poller::register(c"bcache_volume", 0, move || polled.poll())?;
        channel.poller.replace(Some(poller));
        // The front comes last: what it takes of its cache set it gives back by being polled.
        if !channel.hold.begin(&*channel) {
            channel.poller.take();
            return None;
        }
        Some(channel)
    }

    fn make_front(
        &self,
        shape: &Shape<RawDevice>,
    ) -> Result<(SpdkFront, Rc<LaneState>), &'static str> {
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

    fn take(&self, mut io: Io) {
        if self.hold.is_on() {
            return self.hold.keep(io);
        }
        let kind = match io.head().kind {
            sys::BCACHE_READ => Kind::Read,
            sys::BCACHE_WRITE => Kind::Write,
            sys::BCACHE_UNMAP => Kind::Unmap,
            sys::BCACHE_WRITE_ZEROES => Kind::WriteZeroes,
            _ => Kind::Flush,
        };
        if self.front.borrow().is_none() && !self.hold.build_again(self) {
            return answer(io, sys::BCACHE_FAILED);
        }
        let front = self.front.borrow();
        let Some((front, lane)) = &*front else {
            return answer(io, sys::BCACHE_FAILED);
        };
        let volume = front.volume();
        let admitted = match io.admit(kind, self.volume.block_shift, volume.size_sectors()) {
            Ok(admitted) => admitted,
            Err(why) => {
                log::debug!("{}: an I/O is refused: {why:?}", volume.name);
                return answer(io, sys::BCACHE_FAILED);
            }
        };
        match admitted.way(kind, volume) {
            Way::Done => answer(io, sys::BCACHE_SUCCESS),
            Way::Held => self.hold.keep(io),
            Way::Front => {
                io.start(kind, admitted.at, admitted.sectors);
                io.must_be_durable(io.head().durable);
                front.submit(io);
                lane.settle(self);
            }
        }
    }

    fn poll(&self) -> bool {
        let busy = match &*self.front.borrow() {
            Some((front, lane)) => lane.retry_starved() | (front.poll() > 0) | lane.settle(self),
            None => false,
        };
        if self.dropped.get() || self.hold.is_awaited() {
            self.poll_idle();
        }
        busy
    }

    /// Does what waits for nothing to be in flight.
    fn poll_idle(&self) {
        self.hold.go_on(self);
        let done = self.dropped.get() && !self.hold.is_awaited() && self.is_idle();
        if done && self.hold.end(self) {
            // When this is the poller, its closure holds the channel until it returns.
            self.poller.take();
        }
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

impl Reactor for Channel {
    type Line = IoList;
    type Token = Walk;
    type Device = RawDevice;

    fn hold(&self) -> &Hold<IoList, Walk> {
        &self.hold
    }

    fn fronts(&self) -> &Fronts<RawDevice> {
        &self.volume
    }

    fn is_idle(&self) -> bool {
        match &*self.front.borrow() {
            Some((front, lane)) => front.is_idle() && lane.is_idle(),
            None => true,
        }
    }

    fn has_front(&self) -> bool {
        self.front.borrow().is_some()
    }

    fn build(&self, shape: &Shape<RawDevice>) -> bool {
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

    fn submit(&self, io: Io) {
        self.take(io);
    }

    fn fail(&self, io: Io) {
        answer(io, sys::BCACHE_FAILED);
    }

    fn ended(&self, walk: Walk) {
        // SAFETY: SPDK waits for this channel's answer, and gets it once.
        unsafe { sys::spdk_for_each_channel_continue(walk.0, 0) };
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
    channel.hold.come(channel, Step::Reset, Walk(iter));
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
    channel.hold.come(channel, Step::Quiet, Walk(iter));
}

/// Lets host I/O into one channel again; a step of the iteration that [`super::host`] starts.
///
/// # Safety
/// SPDK calls it for a channel of a volume, on the channel's thread.
pub unsafe extern "C" fn resume_each(iter: *mut sys::spdk_io_channel_iter) {
    // SAFETY: by contract.
    let channel = unsafe { channel_of(iter) };
    channel.hold.come(channel, Step::Resume, Walk(iter));
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
        channel.take(io);
    }
}
