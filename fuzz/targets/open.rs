//! The engine's open path on a whole image: a golden one, changed as the input says.
#![no_main]

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::cell::RefCell;

use fixtures::hostile::Target;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static TARGET: RefCell<Option<Target>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    TARGET.with_borrow_mut(|target| {
        let target = target.get_or_insert_with(|| Target::new("clean-dirty"));
        target.change_as(input);
        let _ = target.open(1);
        target.reset();
    });
});
