//! The decoders of nodes, journal entries, priorities and uuid tables, with and without right
//! checksums. The first byte says which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spdk_bcache::format::key::Ptr;
use spdk_bcache::format::merge::{merge, merge_inner};
use spdk_bcache::format::{bset, jset, prio, uuids};
use spdk_bcache::units::{Gen, Sector};

/// Of the set whose structures these would be; the corpus is made for it.
const SET_MAGIC: u64 = 0x1122_3344_5566_7788;

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    let ptr = Ptr::new(0, Sector(640), Gen(3));
    match which % 4 {
        0 => {
            bytes.resize(bytes.len().div_ceil(512) * 512, 0);
            let _ = bset::node_read(&bytes, SET_MAGIC, ptr, 1);
            bset::reseal(&mut bytes, ptr);
            if let Ok(node) = bset::node_read(&bytes, SET_MAGIC, ptr, 1) {
                let merged = merge(&node.sets);
                assert!(
                    merged
                        .windows(2)
                        .all(|p| p[0].position() <= (p[1].inode, p[1].start()))
                );
                let _ = merge_inner(&node.sets, |_| false);
            }
        }
        1 => {
            let _ = jset::parse(&bytes, SET_MAGIC, 1);
            jset::reseal(&mut bytes);
            if let Ok((entry, blocks)) = jset::parse(&bytes, SET_MAGIC, 1) {
                let mut again = Vec::new();
                assert_eq!(entry.encode(SET_MAGIC, 1, &mut again), blocks);
                assert_eq!(jset::parse(&again, SET_MAGIC, 1), Ok((entry, blocks)));
            }
        }
        2 => {
            let _ = prio::parse(&bytes, SET_MAGIC);
            prio::reseal(&mut bytes);
            if let Ok(set) = prio::parse(&bytes, SET_MAGIC) {
                let mut again = vec![0; bytes.len()];
                set.encode(SET_MAGIC, &mut again);
                assert_eq!(prio::parse(&again, SET_MAGIC), Ok(set));
            }
        }
        _ => {
            let table = uuids::parse(&bytes);
            let mut again = vec![0; table.len() * uuids::ENTRY_BYTES];
            uuids::encode(&table, &mut again);
            assert_eq!(uuids::parse(&again), table);
        }
    }
});
