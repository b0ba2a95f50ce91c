//! The engine's open path on a whole image: a golden one, changed as the input says.
#![no_main]

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fixtures::hostile::fuzz(input, |target| {
        let _ = target.open(1);
    });
});
