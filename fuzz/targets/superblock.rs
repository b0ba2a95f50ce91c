//! The superblock's decoder: whatever it accepts comes back as it went.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spdk_bcache::format::superblock::{SUPER_BYTES, parse, reseal};

fuzz_target!(|bytes: &[u8]| {
    let _ = parse(bytes);
    let mut block = [0; SUPER_BYTES];
    let len = bytes.len().min(SUPER_BYTES);
    block[..len].copy_from_slice(&bytes[..len]);
    reseal(&mut block);
    if let Ok(found) = parse(&block) {
        assert_eq!(parse(&found.encode()), Ok(found));
    }
});
