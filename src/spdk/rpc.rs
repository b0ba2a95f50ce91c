//! JSON-RPC: one C handler a method, parameters in and results out as serde_json values.
//!
//! SPDK hands a handler no name, so each method gets a handler of its own, made from a const
//! number. They are registered when the program is loaded, before SPDK looks for them. A method
//! runs as a task of the executor on the owner thread; its request stays SPDK's until it is
//! answered, which happens once, or never when the process is about to end.

use std::ffi::CString;

use serde_json::Value;

use super::{json, module, sys};
use crate::rpc::RpcError;
use crate::rpc::methods::{METHODS, When};

type Handler = unsafe extern "C" fn(*mut sys::spdk_jsonrpc_request, *const sys::spdk_json_val);

/// How many methods there can be.
const HANDLERS_MAX: usize = 64;

macro_rules! handlers {
    ($($nr:literal)*) => { [$(handle::<$nr>),*] };
}

static HANDLERS: [Handler; HANDLERS_MAX] = handlers!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
);

const _: () = assert!(METHODS.len() <= HANDLERS_MAX);

/// A request that waits for its answer.
struct Request(*mut sys::spdk_jsonrpc_request);

impl Request {
    fn answer(self, result: Result<Value, RpcError>) {
        if !module::may_answer() {
            return;
        }
        match result {
            // SAFETY: the request was not answered before (this consumes it) and SPDK keeps it
            // until then, even when its connection is closed. A null context means that the
            // caller wants no answer.
            Ok(value) => unsafe {
                let w = sys::spdk_jsonrpc_begin_result(self.0);
                if !w.is_null() {
                    json::write(w, &value);
                    sys::spdk_jsonrpc_end_result(self.0, w);
                }
            },
            Err(RpcError { code, message }) => {
                let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
                // SAFETY: as above; SPDK copies the text.
                unsafe { sys::spdk_jsonrpc_send_error_response(self.0, code, text.as_ptr()) };
            }
        }
    }
}

unsafe extern "C" fn handle<const NR: usize>(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    let request = Request(request);
    // SAFETY: SPDK's parameters are valid during this call.
    match unsafe { json::read(params) } {
        Ok(params) => module::spawn_rpc(METHODS[NR].name, params, move |result| {
            request.answer(result);
        }),
        Err(error) => request.answer(Err(error)),
    }
}

/// Registers all methods; the `register_rpcs` of the module's table.
pub extern "C" fn register_rpcs() {
    for (nr, method) in METHODS.iter().enumerate() {
        let states = match method.when {
            When::Startup => sys::SPDK_RPC_STARTUP,
            When::Runtime => sys::SPDK_RPC_RUNTIME,
        };
        let Ok(name) = CString::new(method.name) else {
            continue;
        };
        // SAFETY: SPDK copies the name; the handler lives as long as the program.
        unsafe { sys::spdk_rpc_register_method(name.as_ptr(), Some(HANDLERS[nr]), states) };
    }
}
