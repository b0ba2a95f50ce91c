//! A bdev as the engine's [`Disk`]: owned buffers, futures, on the owner thread.
//!
//! - A device is opened and claimed with [`SpdkDisk::open`], and closed when its last holder and
//!   its last request in flight are gone. Dropping a future abandons the answer only.
//! - SPDK has a bounded number of I/Os; a request that gets none is tried again a little later and is
//!   not reported as an error. SPDK's own queue for that would not do: it moves only when an I/O of
//!   the same thread ends, and this thread may have none while others hold them all. For the sake of
//!   those others at most `REQUESTS_MAX` requests of a device are given to SPDK at once; the rest stand
//!   in line.
//! - A device that is being removed (SPDK's hot-removal, or a shutdown) goes on doing I/O for as
//!   long as its driver can, so that a set can still be stopped in good order; SPDK waits until it
//!   is closed. The module is told, see [`super::module`].
//! - A flush is sent whenever the driver knows flushes, whatever it says of a write cache: virtual
//!   bdevs over a device with a volatile cache often claim to have none. [`super::flush`] says how.

use std::cell::{Cell, OnceCell};
use std::ffi::{CStr, CString, c_void};
use std::future::ready;
use std::ptr;
use std::rc::Rc;

use super::flush::{Flushing, Way};
use super::gate::{self, Entrance, Gate};
use super::{dma, ended, host, module, sys, zeros};
use crate::disk::{Buf, BufFuture, Disk, DoneFuture, IoError};
use crate::set::host::{OpenError, Traits};
use crate::task::{OnceSender, once};
use crate::units::{SECTOR_BYTES, SECTOR_SHIFT, Sector};

/// Requests of the owner to one device that SPDK has at once: enough to keep it busy, and few beside
/// what the smallest pool of I/Os has that makes sense. Each device has a line of its own: one that
/// never answers holds no other up.
const REQUESTS_MAX: usize = 32;

/// How long a request waits that found no I/O of SPDK's free.
pub const NO_ROOM_US: u64 = 100;

/// What a device may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, beside whoever else uses it.
    ReadOnly,
    /// Everything, claimed for this module.
    Exclusive,
}

/// An opened bdev; clones share it.
#[derive(Clone)]
pub struct SpdkDisk(Rc<Device>);

struct Device {
    name: String,
    access: Access,
    removing: Cell<bool>,
    raw: OnceCell<Raw>,
}

/// What SPDK gave for an opened bdev.
struct Raw {
    desc: *mut sys::spdk_bdev_desc,
    bdev: *mut sys::spdk_bdev,
    channel: *mut sys::spdk_io_channel,
    /// The name of the module that makes it.
    kind: String,
    block_shift: u32,
    align_bytes: usize,
    flushing: Flushing,
    can_unmap: bool,
    shared_cut: Option<u32>,
    /// Where its queue is shared with other devices.
    gate: Option<Entrance>,
    /// Where the owner's requests stand in line.
    line: Entrance,
}

/// The pointers of a device that the request path uses on other threads. Valid for as long as the
/// [`SpdkDisk`] that gave them is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawDevice {
    /// The descriptor, opened for writing.
    pub desc: *mut sys::spdk_bdev_desc,
    /// The bdev.
    pub bdev: *mut sys::spdk_bdev,
    /// The owner thread's channel: for use there alone.
    pub owner_channel: *mut sys::spdk_io_channel,
    /// log2 of the sectors in a block of the device.
    pub block_shift: u32,
    /// The alignment in bytes of memory that it does not need copied: a power of two.
    pub align_bytes: usize,
    /// How it is flushed.
    flushing: *const Flushing,
    /// Whether the driver can discard.
    pub can_unmap: bool,
    /// Where what it does ends in a queue that other devices share, log2 of the bytes at multiples of
    /// which transfers are cut on their way there: see [`Gate`].
    pub shared_cut: Option<u32>,
}

impl RawDevice {
    /// How the device is flushed.
    pub fn flush_way(&self) -> Way {
        // SAFETY: it lies in the device, which whoever has this holds.
        unsafe { (*self.flushing).way() }
    }
}

impl SpdkDisk {
    /// Opens the bdev `name`. On the owner thread.
    pub fn open(name: &str, access: Access) -> Result<SpdkDisk, OpenError> {
        let c_name = CString::new(name).map_err(|_| OpenError::NotFound)?;
        let device = Rc::new(Device {
            name: name.to_string(),
            access,
            removing: Cell::new(false),
            raw: OnceCell::new(),
        });
        let mut desc = ptr::null_mut();
        // SAFETY: the device's address is stable (an Rc) and outlives the descriptor: it closes it
        // when dropped, and SPDK reports no event of a closed descriptor.
        let rc = unsafe {
            sys::bcache_open(
                c_name.as_ptr(),
                access == Access::Exclusive,
                Rc::as_ptr(&device).cast_mut().cast::<c_void>(),
                &mut desc,
            )
        };
        match -rc {
            0 => {}
            sys::ENODEV => return Err(OpenError::NotFound),
            sys::EPERM => return Err(OpenError::Busy),
            errno => return Err(OpenError::Os(errno)),
        }
        // From here on a drop of `device` closes it.
        if device.raw.set(Raw::of(desc, name)).is_err() {
            unreachable!("a new device has no descriptor yet");
        }
        let disk = SpdkDisk(device);
        let raw = disk.0.raw();
        if raw.channel.is_null() {
            return Err(OpenError::Os(sys::ENOMEM));
        }
        let traits = traits_of(raw.bdev);
        let unfit = match access {
            Access::ReadOnly => traits.unreadable(),
            Access::Exclusive => traits.unfit(),
        };
        if let Some(why) = unfit {
            return Err(OpenError::Unfit(why));
        }
        if access == Access::Exclusive {
            disk.settle_flushing();
        }
        Ok(disk)
    }

    /// Finds out how the device is flushed.
    fn settle_flushing(&self) {
        let raw = self.0.raw();
        // SAFETY: the descriptor is open, so the bdev is there.
        unsafe { raw.flushing.look(raw.bdev, &self.0.name) };
        if raw.flushing.way() == Way::Trying {
            let size = self.size_sectors();
            self.start(OpKind::TryFlush, Sector(0), size, None, Answer::Device);
        }
    }

    /// Whether SPDK asked for the device to be closed.
    pub fn is_removing(&self) -> bool {
        self.0.removing.get()
    }

    /// What the request path needs of the device.
    pub fn raw_device(&self) -> RawDevice {
        let raw = self.0.raw();
        RawDevice {
            desc: raw.desc,
            bdev: raw.bdev,
            owner_channel: raw.channel,
            block_shift: raw.block_shift,
            align_bytes: raw.align_bytes,
            flushing: &raw.flushing,
            can_unmap: raw.can_unmap,
            shared_cut: raw.shared_cut,
        }
    }

    fn start(&self, kind: OpKind, at: Sector, sectors: u64, buf: Option<Buf>, answer: Answer) {
        let raw = self.0.raw();
        let mask = (1u64 << raw.block_shift) - 1;
        let end = at.0.checked_add(sectors);
        let fits = end.is_some_and(|end| end <= self.size_sectors());
        let op = Box::new(Op {
            block: at.0 >> raw.block_shift,
            blocks: sectors >> raw.block_shift,
            tries: 0,
            memory: sys::iovec {
                iov_base: ptr::null_mut(),
                iov_len: 0,
            },
            device: self.0.clone(),
            kind,
            buf,
            answer,
        });
        if !fits || (at.0 | sectors) & mask != 0 {
            op.finish(Err(IoError::OutOfRange));
        } else if sectors == 0 {
            op.finish(Ok(()));
        } else {
            Op::submit(Box::into_raw(op));
        }
    }

    fn transfer(&self, kind: OpKind, at: Sector, buf: Buf) -> BufFuture {
        if !buf.is_device_memory() {
            return self.transfer_in_steps(kind, at, buf);
        }
        let (sender, answer) = once();
        let whole = buf.len() % SECTOR_BYTES == 0;
        let sectors = if whole { buf.len() >> SECTOR_SHIFT } else { 0 };
        if whole {
            self.start(kind, at, sectors as u64, Some(buf), Answer::Buf(sender));
        } else {
            sender.send((buf, Err(IoError::OutOfRange)));
        }
        Box::pin(answer)
    }

    /// A transfer of memory that the device does not reach.
    #[cold]
    fn transfer_in_steps(&self, kind: OpKind, at: Sector, mut buf: Buf) -> BufFuture {
        let (sender, answer) = once();
        let disk = self.clone();
        module::spawn(async move {
            let step = |at: Sector, sectors: u64, memory: Buf| -> BufFuture {
                let (sender, answer) = once();
                disk.start(kind, at, sectors, Some(memory), Answer::Buf(sender));
                Box::pin(answer)
            };
            let writes = kind == OpKind::Write;
            let whole = buf.len() % SECTOR_BYTES == 0;
            let done = match whole {
                true => {
                    module::host()
                        .reserve()
                        .through(writes, at, &mut buf, step)
                        .await
                }
                false => Err(IoError::OutOfRange),
            };
            sender.send((buf, done));
        });
        Box::pin(answer)
    }

    fn order(&self, kind: OpKind, at: Sector, sectors: u64) -> DoneFuture {
        let (sender, answer) = once();
        self.start(kind, at, sectors, None, Answer::Done(sender));
        Box::pin(answer)
    }
}

/// What the bdev of an open descriptor is like.
fn traits_of(bdev: *mut sys::spdk_bdev) -> Traits {
    let mut traits = sys::bcache_traits {
        takes_writes: false,
        is_zoned: false,
        block_bytes: 0,
        md_bytes: 0,
        write_unit_blocks: 0,
    };
    // SAFETY: the bdev is there as long as its descriptor, and only read.
    unsafe { sys::bcache_traits_of(bdev, &mut traits) };
    Traits {
        takes_writes: traits.takes_writes,
        is_zoned: traits.is_zoned,
        block_bytes: traits.block_bytes,
        md_bytes: traits.md_bytes,
        write_unit_blocks: traits.write_unit_blocks,
    }
}

impl Raw {
    /// Looks an open descriptor up. The channel is null when there is no memory for one.
    fn of(desc: *mut sys::spdk_bdev_desc, name: &str) -> Raw {
        // Volumes of ours enter the gate themselves, at their own devices: who held places here for
        // an I/O of theirs would keep them from it.
        let gates_itself = host::lies_on_volume(name);
        // SAFETY: the descriptor was just opened on this thread; all functions here only read it
        // and its bdev, which stays as long as the descriptor.
        unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(desc);
            let block_bytes = sys::spdk_bdev_get_block_size(bdev).max(SECTOR_BYTES as u32);
            let cut = sys::bcache_shared_queue_cut(bdev);
            let shared_cut = (cut > 0 && !gates_itself).then_some(cut);
            Raw {
                desc,
                bdev,
                channel: sys::spdk_bdev_get_io_channel(desc),
                kind: CStr::from_ptr(sys::bcache_module_name(bdev))
                    .to_string_lossy()
                    .into_owned(),
                block_shift: block_bytes.ilog2() - SECTOR_SHIFT,
                align_bytes: sys::spdk_bdev_get_buf_align(bdev).max(1),
                flushing: Flushing::default(),
                can_unmap: sys::bcache_supports(bdev, sys::BCACHE_UNMAP),
                gate: shared_cut.map(|_| Gate::here().entrance(bdev)),
                line: Gate::of(REQUESTS_MAX),
                shared_cut,
            }
        }
    }
}

impl Raw {
    /// A request is over, or did not begin.
    fn leave(&self, places: usize) {
        if let Some(gate) = &self.gate {
            gate.leave(places);
        }
    }
}

impl Device {
    fn raw(&self) -> &Raw {
        self.raw.get().expect("set before anybody sees the device")
    }
}

impl Device {
    /// The command that [`SpdkDisk::settle_flushing`] sent has ended.
    fn flush_tried(&self, ended: Result<(), IoError>) {
        let raw = self.raw();
        // SAFETY: the descriptor is open, so the bdev is there.
        let takes_plain = unsafe { sys::bcache_supports(raw.bdev, sys::BCACHE_FLUSH) };
        raw.flushing.tried(&self.name, ended, takes_plain);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Some(raw) = self.raw.get() else { return };
        // SAFETY: the descriptor and the channel are this device's own, no request is in flight
        // (each holds the device), and this is the thread that opened it (Rc is not Send).
        unsafe {
            if !raw.channel.is_null() {
                sys::spdk_put_io_channel(raw.channel);
            }
            if self.access == Access::Exclusive {
                sys::spdk_bdev_module_release_bdev(raw.bdev);
            }
            sys::spdk_bdev_close(raw.desc);
        }
    }
}

/// What SPDK tells about an opened device; the `device_event` of the module's table.
///
/// # Safety
/// `device` is the pointer that was given to `bcache_open`, and its descriptor is open.
pub unsafe extern "C" fn device_event(device: *mut c_void, event: sys::bcache_event) {
    // SAFETY: by contract; the reference ends before the module may drop the device.
    let name = unsafe {
        let device = &*device.cast::<Device>();
        device
            .removing
            .set(device.removing.get() || event == sys::BCACHE_EVENT_REMOVE);
        device.name.clone()
    };
    module::device_event(&name, event == sys::BCACHE_EVENT_REMOVE);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OpKind {
    Read,
    Write,
    Flush,
    /// NVMe's own command, to see whether the device takes it.
    TryFlush,
    Unmap,
    WriteZeroes,
}

enum Answer {
    /// The device itself: its flush was tried.
    Device,
    Buf(OnceSender<(Buf, Result<(), IoError>)>),
    Done(OnceSender<Result<(), IoError>>),
}

/// A request: given to SPDK as a raw box, taken back when it is done.
struct Op {
    device: Rc<Device>,
    kind: OpKind,
    block: u64,
    blocks: u64,
    /// How often it was given to the device again.
    tries: u8,
    buf: Option<Buf>,
    /// The memory of `buf` that is transferred, as SPDK wants it.
    memory: sys::iovec,
    answer: Answer,
}

impl Op {
    /// How many places at a shared queue it needs.
    fn places(&self) -> usize {
        let raw = self.device.raw();
        let shift = raw.block_shift + SECTOR_SHIFT;
        match (self.kind, raw.shared_cut) {
            (OpKind::Read | OpKind::Write | OpKind::WriteZeroes, Some(cut)) => {
                gate::places(self.block << shift, self.blocks << shift, cut)
            }
            _ => 1,
        }
    }

    fn finish(self, result: Result<(), IoError>) {
        let Op {
            buf,
            answer,
            device,
            ..
        } = self;
        match (answer, buf) {
            (Answer::Buf(sender), Some(buf)) => sender.send((buf, result)),
            (Answer::Done(sender), _) => sender.send(result),
            (Answer::Device, _) => device.flush_tried(result),
            (Answer::Buf(_), None) => unreachable!("a transfer has a buffer"),
        }
    }

    /// Hands the request to SPDK, now or when its turn has come. It ends in [`done`], or is finished
    /// in [`send`](Self::send) with an error.
    fn submit(raw_op: *mut Op) {
        // SAFETY: `raw_op` is a box that nobody else holds until `next_in_line` is called with it.
        let enters = unsafe {
            let line = &(*raw_op).device.raw().line;
            line.enter(1, next_in_line, raw_op.cast())
        };
        if enters {
            Op::to_device(raw_op);
        }
    }

    /// Goes on when the device has a place for the request.
    fn to_device(raw_op: *mut Op) {
        // SAFETY: `raw_op` is a box that nobody else holds until `admitted` is called with it.
        let enters = unsafe {
            match &(*raw_op).device.raw().gate {
                Some(gate) => gate.enter((*raw_op).places(), admitted, raw_op.cast()),
                None => true,
            }
        };
        if enters {
            Op::send(raw_op);
        }
    }

    fn send(raw_op: *mut Op) {
        // SAFETY: `raw_op` is a box that nobody else holds until SPDK calls back; SPDK never does
        // within the submission. The device is open because the request holds it, and the buffer
        // is neither moved nor touched until `done`.
        let rc = unsafe {
            let op = &mut *raw_op;
            let raw = op.device.raw();
            let (desc, ch, cb) = (raw.desc, raw.channel, Some(done as DoneFn));
            let (at, blocks, arg) = (op.block, op.blocks, raw_op.cast::<c_void>());
            let data = op.buf.as_mut().map_or(ptr::null_mut(), |b| b.as_mut_ptr());
            op.memory = sys::iovec {
                iov_base: data.cast(),
                iov_len: (blocks as usize) << (raw.block_shift + SECTOR_SHIFT),
            };
            let iov = &raw mut op.memory;
            match op.kind {
                OpKind::Read => sys::spdk_bdev_readv_blocks(desc, ch, iov, 1, at, blocks, cb, arg),
                OpKind::Write => {
                    sys::spdk_bdev_writev_blocks(desc, ch, iov, 1, at, blocks, cb, arg)
                }
                OpKind::Flush => give_flush(raw.flushing.way(), desc, ch, (at, blocks), cb, arg),
                OpKind::TryFlush => sys::bcache_flush_command(desc, ch, cb, arg),
                OpKind::Unmap => sys::spdk_bdev_unmap_blocks(desc, ch, at, blocks, cb, arg),
                OpKind::WriteZeroes => {
                    sys::spdk_bdev_write_zeroes_blocks(desc, ch, at, blocks, cb, arg)
                }
            }
        };
        if rc == 0 {
            return;
        }
        // SAFETY: not submitted, so the box is still this function's.
        unsafe {
            (*raw_op).device.raw().leave((*raw_op).places());
            if rc != -sys::ENOMEM {
                let device = (*raw_op).device.clone();
                Box::from_raw(raw_op).finish(Err(ended::refused(rc)));
                return device.raw().line.leave(1);
            }
        }
        module::after(NO_ROOM_US, move || Op::to_device(raw_op));
    }
}

/// Gives SPDK a flush of a device that is flushed this way; the range is the whole device. Returns 0 or
/// a negative errno: -ENOMEM while the way is not known.
///
/// # Safety
/// As for spdk_bdev_flush_blocks.
pub unsafe fn give_flush(
    way: Way,
    desc: *mut sys::spdk_bdev_desc,
    ch: *mut sys::spdk_io_channel,
    (at, blocks): (u64, u64),
    cb: sys::spdk_bdev_io_completion_cb,
    arg: *mut c_void,
) -> i32 {
    // SAFETY: by contract.
    unsafe {
        match way {
            Way::Trying => -sys::ENOMEM,
            Way::Command => sys::bcache_flush_command(desc, ch, cb, arg),
            Way::Plain | Way::None => sys::spdk_bdev_flush_blocks(desc, ch, at, blocks, cb, arg),
        }
    }
}

type DoneFn = unsafe extern "C" fn(*mut sys::spdk_bdev_io, bool, *mut c_void);

unsafe extern "C" fn done(bdev_io: *mut sys::spdk_bdev_io, success: bool, arg: *mut c_void) {
    // SAFETY: `arg` is the box given away in `submit`, which comes back exactly once; the I/O is
    // freed before the device can be closed.
    let (mut op, ended) = unsafe {
        let ended = ended::of(bdev_io, success);
        sys::bcache_free_io(bdev_io);
        (Box::from_raw(arg.cast::<Op>()), ended)
    };
    op.device.raw().leave(op.places());
    if let Some(us) = ended::again_after_us(ended, op.tries) {
        op.tries += 1;
        let raw_op = Box::into_raw(op);
        return module::after(us, move || Op::to_device(raw_op));
    }
    let device = op.device.clone();
    op.finish(ended);
    device.raw().line.leave(1);
}

unsafe extern "C" fn next_in_line(arg: *mut c_void) {
    Op::to_device(arg.cast());
}

unsafe extern "C" fn admitted(arg: *mut c_void) {
    Op::send(arg.cast());
}

impl Disk for SpdkDisk {
    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn kind(&self) -> &str {
        &self.0.raw().kind
    }

    fn size_sectors(&self) -> u64 {
        let raw = self.0.raw();
        // SAFETY: the descriptor is open, so the bdev is there.
        (unsafe { sys::spdk_bdev_get_num_blocks(raw.bdev) }) << raw.block_shift
    }

    fn block_sectors(&self) -> u32 {
        1 << self.0.raw().block_shift
    }

    fn alloc(&self, bytes: usize) -> Buf {
        dma::alloc(module::host().buffers(), bytes, self.0.raw().align_bytes)
    }

    fn read(&self, at: Sector, buf: Buf) -> BufFuture {
        self.transfer(OpKind::Read, at, buf)
    }

    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        self.transfer(OpKind::Write, at, buf)
    }

    fn flush(&self) -> DoneFuture {
        if self.0.raw().flushing.way() == Way::None {
            return Box::pin(ready(Ok(())));
        }
        self.order(OpKind::Flush, Sector(0), self.size_sectors())
    }

    fn unmap(&self, at: Sector, sectors: u64) -> DoneFuture {
        if !self.0.raw().can_unmap {
            return Box::pin(ready(Err(IoError::Unsupported)));
        }
        self.order(OpKind::Unmap, at, sectors)
    }

    fn write_zeroes(&self, at: Sector, sectors: u64) -> DoneFuture {
        self.order(OpKind::WriteZeroes, at, sectors)
    }

    fn unmap_reads_zeros(&self) -> bool {
        // SAFETY: the descriptor is open, so the bdev is there; engine devices are used on the owner's
        // thread, where SPDK makes and removes bdevs.
        unsafe { zeros::reads_zeros(self.0.raw().bdev) }
    }
}
