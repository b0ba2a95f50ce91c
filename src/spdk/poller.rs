//! Pollers as closures.

use std::cell::RefCell;
use std::ffi::{CStr, c_void};
use std::rc::Rc;

use super::sys;

type Body = RefCell<Box<dyn FnMut() -> bool>>;

/// A closure that SPDK calls again and again on the thread that registered it, until this is
/// dropped, on that thread; the closure may drop its own poller.
pub struct Poller {
    raw: *mut sys::spdk_poller,
    /// What `raw` calls.
    _body: Rc<Body>,
}

impl Poller {
    /// Registers `body` under a name for people (spdk_top), which tells whether it found something to do. It is called every
    /// `period_us`, or as often as possible when that is 0. `None` when there is no memory.
    pub fn register(
        name: &'static CStr,
        period_us: u64,
        body: impl FnMut() -> bool + 'static,
    ) -> Option<Poller> {
        let body: Rc<Body> = Rc::new(RefCell::new(Box::new(body)));
        let arg = Rc::as_ptr(&body).cast_mut().cast::<c_void>();
        // SAFETY: the name is a constant; `arg` stays valid until `drop` has unregistered the poller, because the
        // closure is held until then; `run` takes exactly this pointer.
        let raw =
            unsafe { sys::spdk_poller_register_named(Some(run), arg, period_us, name.as_ptr()) };
        (!raw.is_null()).then_some(Poller { raw, _body: body })
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        // SAFETY: `raw` came from spdk_poller_register_named on this thread (a Poller is not Send) and
        // is unregistered once. SPDK allows it from within the poller itself.
        unsafe { sys::spdk_poller_unregister(&mut self.raw) };
    }
}

unsafe extern "C" fn run(arg: *mut c_void) -> i32 {
    let body = arg.cast_const().cast::<Body>();
    // SAFETY: `arg` is the Rc's pointer given to spdk_poller_register_named, whose owner has not been
    // dropped, or SPDK would not call. The count taken here keeps the closure alive when it drops
    // its own poller.
    let body = unsafe {
        Rc::increment_strong_count(body);
        Rc::from_raw(body)
    };
    let busy = (body.borrow_mut())();
    i32::from(busy)
}
