//! The bdev module `bcache`: what SPDK asks of it, and the owner thread's executor.
//!
//! Everything here runs on SPDK's app thread, the *owner*. The module's life:
//!
//! 1. `init` registers the poller that drives the executor. RPCs and examinations become tasks.
//! 2. A shutdown begins with `fini_start`. SPDK then unregisters all bdevs from the top down: each
//!    volume that it takes away holds it up ([`before_destruct_done`]) until all sets are stopped in
//!    good order, and their devices closed, on whose volumes nothing lies any more. What lies on a
//!    volume, as a store of lvols, goes before it. Where there is no volume to hold SPDK up, stopping
//!    begins at once.
//! 3. `fini` comes last; it ends from the last task of all, after the poller is gone.
//!
//! No RPC is answered once the end has begun: the server of RPCs may have been freed.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::rc::Rc;

use serde_json::{Value, json as value};

use super::host::{self, ModuleHost, SpdkHost};
use super::poller::Poller;
use super::thread::{self, OwnerCell};
use super::{channel, disk, dma, json, lane, rpc, sys};
use crate::rpc::RpcError;
use crate::set::hub::{Hub, STOP_LIMIT_US};
use crate::task::{Executor, Notify, either};
use crate::units::Uuid;

/// Task steps that a run of the executor's poller takes at most.
const STEPS_MAX: usize = 64;
/// The time after which it begins no other step, so that host I/O of this reactor gets its turn.
const POLL_US_MAX: u64 = 25;

/// How long SPDK has to end by itself once all sets have stopped in good order: 20 s.
const GRACE_US: u64 = 20_000_000;
/// The same, once some were given up: 5 s.
const GIVEN_UP_GRACE_US: u64 = 5_000_000;

/// How far the sets are stopped for a shutdown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Running,
    Done,
}

struct Owner {
    exec: Executor,
    host: SpdkHost,
    hub: RefCell<Option<Rc<Hub>>>,
    poller: RefCell<Option<Poller>>,
    /// SPDK shuts down.
    ending: Cell<bool>,
    /// The end of the process was asked for: the RPC server may be gone.
    silent: Cell<bool>,
    /// What a start waits for, and behind which volume: of the last `write_config`.
    waits: RefCell<Vec<(String, String, Uuid)>>,
    stop: Cell<Stop>,
    stop_done: Notify,
    /// They stopped in good order.
    in_time: Cell<bool>,
    /// Set by the last task of all: the poller ends and SPDK is told.
    finished: Cell<bool>,
}

static OWNER: OwnerCell<Owner> = OwnerCell::new();

fn owner() -> &'static Owner {
    OWNER.get_or_init(|| {
        let exec = Executor::new();
        Owner {
            host: SpdkHost::new(exec.clone()),
            exec,
            hub: RefCell::new(None),
            poller: RefCell::new(None),
            ending: Cell::new(false),
            silent: Cell::new(false),
            waits: RefCell::default(),
            stop: Cell::new(Stop::No),
            stop_done: Notify::default(),
            in_time: Cell::new(true),
            finished: Cell::new(false),
        }
    })
}

impl Owner {
    fn hub(&'static self) -> Rc<Hub> {
        let mut hub = self.hub.borrow_mut();
        let made = || Hub::new(Rc::new(ModuleHost(&self.host)), self.exec.clone());
        hub.get_or_insert_with(made).clone()
    }

    /// Stops all sets, once; whoever comes later waits for the same.
    async fn stop_all(&'static self) {
        if self.stop.get() == Stop::No {
            self.stop.set(Stop::Running);
            self.in_time.set(self.hub().stop_all().await);
            self.stop.set(Stop::Done);
            self.stop_done.notify();
        }
        while self.stop.get() != Stop::Done {
            self.stop_done.wait().await;
        }
    }

    fn poll(&self) -> bool {
        let hub = self.hub.borrow().clone();
        let messages = hub.map_or(0, |hub| hub.poll());
        let now_us = thread::now_us();
        let in_time = || thread::now_us() < now_us + POLL_US_MAX;
        let busy = self.exec.poll_while(now_us, STEPS_MAX, in_time) + messages > 0;
        if self.finished.get() {
            self.poller.take();
            // SAFETY: SPDK waits for this since it called `fini`.
            unsafe { sys::bcache_fini_done() };
        }
        busy
    }
}

/// The host, on the owner thread.
pub fn host() -> &'static SpdkHost {
    &owner().host
}

/// Calls `f` with `arg` on the owner thread, later. From any SPDK thread.
///
/// # Safety
/// `arg` is what `f` wants when it is called.
pub unsafe fn send_to_owner(f: unsafe extern "C" fn(*mut c_void), arg: *mut c_void) {
    // SAFETY: by contract.
    unsafe { OWNER.send(f, arg) };
}

/// Runs an RPC as a task; `answer` gets its result.
pub fn spawn_rpc(
    method: &'static str,
    params: Value,
    answer: impl FnOnce(Result<Value, RpcError>) + 'static,
) {
    let owner = owner();
    owner.exec.spawn(async move {
        answer(crate::rpc::call(owner.hub(), method, params).await);
    });
    if owner.poller.borrow().is_none() {
        // Before the subsystems are up nothing polls; what is allowed then ends in one go.
        owner.exec.poll(thread::now_us(), STEPS_MAX);
    }
}

/// Runs a task on the owner thread, where this is called too.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    owner().exec.spawn(task);
}

/// Calls `f` on the owner thread, where this is called too, after so many µs.
pub fn after(us: u64, f: impl FnOnce() + 'static) {
    let exec = &owner().exec;
    let sleep = exec.sleep_us(us);
    exec.spawn(async move {
        sleep.await;
        f();
    });
}

/// A device that is open is about to go (`removed`), or has another size.
pub fn device_event(name: &str, removed: bool) {
    let (owner, name) = (owner(), name.to_string());
    owner.exec.spawn(async move {
        if !removed {
            owner.hub().resized(&name).await;
        } else if owner.ending.get() {
            // SPDK's shutdown has come to the devices under the sets.
            owner.stop_all().await;
        } else {
            owner.hub().removed(&name).await;
        }
    });
}

/// What SPDK has to wait for before it may go on after a volume is gone.
pub async fn before_destruct_done() {
    let owner = owner();
    match owner.stop.get() {
        _ if !owner.ending.get() => {}
        Stop::No => owner.hub().stop_free().await,
        Stop::Running | Stop::Done => owner.stop_all().await,
    }
}

extern "C" fn init() -> i32 {
    super::log::install();
    let owner = owner();
    if !dma::reserve(owner.host.reserve(), owner.host.buffers()) {
        log::error!(
            "no huge page memory is left for the cache's metadata: give the target more (-s)"
        );
        return -sys::ENOMEM;
    }
    let poller = Poller::register(c"bcache_owner", 0, || owner.poll());
    let made = poller.is_some();
    owner.poller.replace(poller);
    if made { 0 } else { -sys::ENOMEM }
}

/// Whether an RPC may be answered. Up to some release SPDK frees its RPC server when the end begins,
/// with requests under way.
pub fn may_answer() -> bool {
    !owner().silent.get()
}

/// The target is told to end. What a device that never answers holds up for too long is given up,
/// and the process ends where SPDK itself waits for ever, for that device or for one of its modules.
extern "C" fn end_begins() {
    let owner = owner();
    owner.silent.set(true);
    owner.hub().begin_end();
    owner.exec.spawn(async move {
        let stopped = async {
            while owner.stop.get() != Stop::Done {
                owner.stop_done.wait().await;
            }
        };
        either(stopped, owner.exec.sleep_us(STOP_LIMIT_US)).await;
        let is_held_up = owner.stop.get() == Stop::No;
        owner.stop_all().await;
        let in_order = owner.in_time.get() && !is_held_up;
        let grace_us = if in_order {
            GRACE_US
        } else {
            GIVEN_UP_GRACE_US
        };
        owner.exec.sleep_us(grace_us).await;
        log::error!("SPDK does not end: the process is ended");
        // SAFETY: this is called in a target of ours only.
        unsafe { sys::bcache_exit(i32::from(!in_order)) };
    });
}

extern "C" fn fini_start() {
    let owner = owner();
    owner.ending.set(true);
    owner.silent.set(true);
    owner.hub().begin_end();
    if !owner.host.has_volumes() {
        owner.exec.spawn(owner.stop_all());
    }
}

extern "C" fn fini() {
    let owner = owner();
    owner.exec.spawn(async move {
        owner.stop_all().await;
        owner.finished.set(true);
    });
}

unsafe extern "C" fn examine(name: *const c_char) {
    let owner = owner();
    // SAFETY: SPDK's name of a bdev ends in NUL and is valid during the call.
    let name = unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned();
    owner.exec.spawn(async move {
        if !owner.ending.get() {
            owner.hub().examine(&name).await;
        }
    });
}

unsafe extern "C" fn write_config(w: *mut sys::spdk_json_write_ctx) {
    let mut names: Vec<String> = Vec::new();
    // SAFETY: `names` outlives the call, within which `note_name` is called.
    unsafe { sys::bcache_each_bdev(Some(note_name), (&raw mut names).cast()) };
    owner().waits.replace(owner().hub().waits(&names));
    for (method, params) in crate::rpc::config(&owner().hub()) {
        let call = value!({"method": method, "params": params});
        // SAFETY: SPDK has an array open, which takes any number of values.
        unsafe { json::write(w, &call) };
    }
}

unsafe extern "C" fn note_name(names: *mut c_void, name: *const c_char) {
    // SAFETY: `names` is the Vec of `write_config`, which nobody else uses during the call; SPDK's
    // name of a bdev ends in NUL and is valid during the call.
    unsafe {
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        (*names.cast::<Vec<String>>()).push(name);
    }
}

unsafe extern "C" fn write_volume_config(volume: *mut c_void, w: *mut sys::spdk_json_write_ctx) {
    let owner = owner();
    let Some(place) = owner.host.name_of(volume) else {
        return;
    };
    for (behind, name, uuid) in &*owner.waits.borrow() {
        if *behind != place {
            continue;
        }
        let params = value!({"name": name, "uuid": uuid.to_string()});
        let call = value!({"method": "bdev_bcache_wait_for_volume", "params": params});
        // SAFETY: SPDK has an array open, which takes any number of values.
        unsafe { json::write(w, &call) };
    }
}

unsafe extern "C" fn dump_info(volume: *mut c_void, w: *mut sys::spdk_json_write_ctx) {
    let owner = owner();
    let Some(name) = owner.host.name_of(volume) else {
        return;
    };
    let info = crate::rpc::describe(&owner.hub(), &name);
    // SAFETY: SPDK has an object open; the key ends in NUL and is read during the call.
    unsafe {
        sys::spdk_json_write_name(w, c"bcache".as_ptr());
        json::write(w, &info);
    }
}

/// What glue.c calls.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static bcache_ops_of_rust: sys::bcache_ops = sys::bcache_ops {
    io_ctx_bytes: size_of::<lane::IoCtx>() as i32,
    register_rpcs: Some(rpc::register_rpcs),
    init: Some(init),
    fini_start: Some(fini_start),
    fini: Some(fini),
    examine: Some(examine),
    write_config: Some(write_config),
    write_volume_config: Some(write_volume_config),
    end_begins: Some(end_begins),
    destruct: Some(host::destruct),
    device_event: Some(disk::device_event),
    dump_info: Some(dump_info),
    get_io_channel: Some(host::get_io_channel),
    submit: Some(channel::submit),
};
