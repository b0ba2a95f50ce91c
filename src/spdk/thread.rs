//! SPDK threads, and what belongs to one of them.

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::sys;

/// The SPDK thread that runs, null outside of any.
pub fn current() -> *mut sys::spdk_thread {
    // SAFETY: reads a thread-local; has no preconditions.
    unsafe { sys::spdk_get_thread() }
}

/// The processor's own counter.
pub fn ticks() -> u64 {
    // SAFETY: reads a register; has no preconditions.
    unsafe { sys::spdk_get_ticks() }
}

/// Microseconds in a tick, as a fraction of 2^64; 0 before it is known.
static US_A_TICK: AtomicU64 = AtomicU64::new(0);

/// Microseconds since an arbitrary start, from the processor's own counter. Never goes back.
#[inline]
pub fn now_us() -> u64 {
    let mut scale = US_A_TICK.load(Ordering::Relaxed);
    if scale == 0 {
        // SAFETY: reads a constant; the environment is up on every SPDK thread.
        let hz = unsafe { sys::spdk_get_ticks_hz() };
        scale = ((1_000_000u128 << 64) / u128::from(hz.max(1_000_001))) as u64;
        US_A_TICK.store(scale, Ordering::Relaxed);
    }
    ((u128::from(ticks()) * u128::from(scale)) >> 64) as u64
}

/// A static that belongs to the SPDK thread that first asked for it, and lives as long as the
/// process. SPDK threads may move between system threads, so a thread-local would not do.
pub struct OwnerCell<T> {
    thread: AtomicPtr<sys::spdk_thread>,
    value: AtomicPtr<T>,
}

impl<T> OwnerCell<T> {
    /// An empty cell without an owner.
    pub const fn new() -> OwnerCell<T> {
        OwnerCell {
            thread: AtomicPtr::new(std::ptr::null_mut()),
            value: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Calls `f` with `arg` on the owner's thread, later. From any SPDK thread.
    ///
    /// # Panics
    /// When there is no owner yet, or no memory for a message.
    ///
    /// # Safety
    /// `arg` is what `f` wants when it is called.
    pub unsafe fn send(&self, f: unsafe extern "C" fn(*mut c_void), arg: *mut c_void) {
        let owner = self.thread.load(Ordering::Acquire);
        assert!(!owner.is_null(), "there is no owner yet");
        // SAFETY: the owner is SPDK's app thread, which outlives the module; `f` and `arg` by
        // contract.
        let rc = unsafe { sys::spdk_thread_send_msg(owner, Some(f), arg) };
        assert_eq!(rc, 0, "no memory for a message");
    }

    /// The value, made on the first call.
    ///
    /// # Panics
    /// On another thread than that of the first call.
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &'static T {
        let here = current();
        assert!(!here.is_null(), "only an SPDK thread may ask for this");
        let owner = self.thread.load(Ordering::Acquire);
        if owner.is_null() {
            let value = Box::into_raw(Box::new(make()));
            self.value.store(value, Ordering::Release);
            let first = self.thread.compare_exchange(
                std::ptr::null_mut(),
                here,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            assert!(first.is_ok(), "two threads claim to be the owner");
        } else {
            assert!(
                owner == here,
                "the owner's state was asked for on another thread"
            );
        }
        // SAFETY: the pointer came from Box::into_raw, is never freed nor changed again, and only
        // the one thread that made it gets here, so `T` need not be Sync.
        unsafe { &*self.value.load(Ordering::Acquire) }
    }
}

impl<T> Default for OwnerCell<T> {
    fn default() -> Self {
        Self::new()
    }
}
