//! The way round by the owner thread, for operations that find no I/O of SPDK's where they are.
//!
//! Such an operation is a box that travels: [`begin`] has it on the owner thread, where nobody stands
//! in SPDK's line, `done` takes it back from SPDK there, and `home` hands it to its lane again. It is
//! in one place at a time, and its channel, with it the device, stays until it is home.

use std::ffi::c_void;

use super::super::disk::{NO_ROOM_US, RawDevice};
use super::super::gate::{Entrance, Gate};
use super::super::{ended, module, sys};
use super::{Part, give};

/// The device of a part that goes round.
///
/// # Safety
/// `raw` is the box of such a part, on the owner thread.
unsafe fn device_of(raw: *mut Part) -> RawDevice {
    // SAFETY: by contract.
    unsafe { (*raw).device }.expect("it was named before the part went round")
}

/// The device's way through the owner thread's gate. The device is open there, so this is not the only
/// one, and its drop leaves nothing behind.
fn entrance(device: &RawDevice) -> Entrance {
    Gate::here().entrance(device.bdev)
}

pub(super) unsafe extern "C" fn begin(arg: *mut c_void) {
    // SAFETY: `arg` is the box of a part that a lane sent here; the gate is this thread's.
    unsafe {
        let device = device_of(arg.cast());
        if device.shared_cut.is_none()
            || entrance(&device).enter((*arg.cast::<Part>()).places(&device), send, arg)
        {
            send(arg);
        }
    }
}

unsafe extern "C" fn send(arg: *mut c_void) {
    let raw = arg.cast::<Part>();
    // SAFETY: as in `begin`; the channel is the owner's own, and this is its thread.
    unsafe {
        let device = device_of(raw);
        let rc = give(raw, &device, device.owner_channel, done);
        if rc == 0 {
            return;
        }
        if device.shared_cut.is_some() {
            entrance(&device).leave((*raw).places(&device));
        }
        if rc == -sys::ENOMEM {
            return module::after(NO_ROOM_US, move || begin(arg));
        }
        (*raw).ended = Err(ended::refused(rc));
        go_home(raw);
    }
}

unsafe extern "C" fn done(bdev_io: *mut sys::spdk_bdev_io, ok: bool, arg: *mut c_void) {
    let raw = arg.cast::<Part>();
    // SAFETY: the part comes back from SPDK exactly once.
    unsafe {
        (*raw).ended = ended::of(bdev_io, ok);
        sys::bcache_free_io(bdev_io);
        let device = device_of(raw);
        if device.shared_cut.is_some() {
            entrance(&device).leave((*raw).places(&device));
        }
        go_home(raw);
    }
}

/// Gives a part back to its lane.
///
/// # Safety
/// `raw` is the box of a part that went round, and nobody else's.
unsafe fn go_home(raw: *mut Part) {
    // SAFETY: by contract; the lane's thread lives as long as its channel.
    let rc = unsafe { sys::spdk_thread_send_msg((*raw).home, Some(home), raw.cast()) };
    assert_eq!(rc, 0, "no memory for a message");
}

unsafe extern "C" fn home(arg: *mut c_void) {
    // SAFETY: the part is its lane's again, on its thread; the channel outlives its parts.
    let (part, channel) = unsafe {
        let part = Box::from_raw(arg.cast::<Part>());
        let channel = &*part.channel;
        (part, channel)
    };
    channel.with_lane(|lane| {
        let ended = part.ended;
        lane.hand_over(channel, part, ended);
        lane.settle(channel);
    });
}
