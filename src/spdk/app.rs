//! The target's life: SPDK's application framework around the module.

use std::ffi::{CString, c_char};

use super::{pages, sys};

/// Runs SPDK's framework with the arguments of the command line, the program's name first, until
/// it is told to stop (a signal, or the RPC `spdk_kill_instance`). Returns the exit status.
///
/// The options are those of SPDK's own target: `-c`/`--json` configuration, `-m` cores, `-r` RPC
/// socket, `-s` memory, `--huge-unlink`, `--wait-for-rpc`, `-S` folder of vhost's sockets, `-f`
/// file for the process id.
pub fn run(args: impl Iterator<Item = String>) -> i32 {
    let args: Vec<String> = args.collect();
    if let Some(missing) = pages::missing(&args) {
        eprintln!("bcache_tgt: {missing}");
    }
    // An argument with a NUL in it cannot come from a command line.
    let args = args.into_iter();
    let args: Vec<CString> = args.filter_map(|arg| CString::new(arg).ok()).collect();
    // getopt changes the order of the pointers and SPDK keeps some: neither list is ever freed.
    let args: &'static [CString] = args.leak();
    let mut argv: Vec<*mut c_char> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let argv = argv.leak();
    super::log::install();
    // SAFETY: `argv` is what C's main gets: `args.len()` strings that end in NUL and a null
    // pointer, all alive until the process ends. Option parsing does not write into the strings.
    unsafe { sys::bcache_app_run(args.len() as i32, argv.as_mut_ptr()) }
}
