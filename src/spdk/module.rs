//! The bdev module `bcache`: what SPDK asks of it, and the owner thread's executor.
//!
//! Everything here runs on SPDK's app thread, the *owner*. The module's life:
//!
//! 1. `init` registers the poller that drives the executor. RPCs and examinations become tasks.
//! 2. A shutdown begins with `fini_start`. SPDK then unregisters all bdevs from the top down: the
//!    first volume that it takes away holds it up ([`before_destruct_done`]) until all sets are
//!    stopped in good order and their devices closed. Where there is no volume to hold it up,
//!    stopping begins at once.
//! 3. `fini` comes last; it ends from the last task of all, after the poller is gone.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::rc::Rc;

use serde_json::{Value, json as value};

use super::host::{self, ModuleHost, SpdkHost};
use super::poller::Poller;
use super::thread::{self, OwnerCell};
use super::{channel, disk, json, lane, rpc, sys};
use crate::rpc::RpcError;
use crate::set::hub::Hub;
use crate::task::{Executor, Notify};

/// Task steps that a run of the executor's poller takes at most.
const STEPS_MAX: usize = 64;
/// The time after which it begins no other step, so that host I/O of this reactor gets its turn.
const POLL_US_MAX: u64 = 25;

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
    stop: Cell<Stop>,
    stop_done: Notify,
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
            stop: Cell::new(Stop::No),
            stop_done: Notify::default(),
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
            self.hub().stop_all().await;
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
    if owner.ending.get() {
        owner.stop_all().await;
    }
}

extern "C" fn init() -> i32 {
    super::log::install();
    let owner = owner();
    if !owner.host.reserve().fill(owner.host.buffers()) {
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

extern "C" fn fini_start() {
    let owner = owner();
    owner.ending.set(true);
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
        // SAFETY: SPDK waits for this since it called `examine`.
        unsafe { sys::bcache_examine_done() };
    });
}

unsafe extern "C" fn write_config(w: *mut sys::spdk_json_write_ctx) {
    for (method, params) in crate::rpc::config(&owner().hub()) {
        let call = value!({"method": method, "params": params});
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
    destruct: Some(host::destruct),
    device_event: Some(disk::device_event),
    dump_info: Some(dump_info),
    get_io_channel: Some(host::get_io_channel),
    submit: Some(channel::submit),
};
