//! A device in memory that answers after everybody else had a turn, and a set on it: for benches.
#![allow(dead_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use spdk_bcache::disk::{Buf, BufFuture, Disk, DoneFuture};
use spdk_bcache::format::superblock::{CacheSuper, Super};
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::{CacheSet, read_super};
use spdk_bcache::sim::host::SimHost;
use spdk_bcache::task::{Executor, yield_now};
use spdk_bcache::units::{SECTOR_BYTES, Sector};

/// Sectors of a bucket.
pub const BUCKET: u32 = 1024;
/// Sectors of a block, and of every extent.
pub const SECTORS: u32 = 8;

/// A device that keeps what was written to it, by block.
struct Memory {
    sectors: u64,
    written: RefCell<BTreeMap<u64, Box<[u8]>>>,
    /// Writes of a single block too: such of host data are never looked at, and take much memory.
    keeps_blocks: bool,
}

/// Bytes of a block.
const BLOCK_BYTES: usize = SECTORS as usize * SECTOR_BYTES;

/// Fills `buf` with what was written of the sectors from `at` on.
pub fn read_from(written: &BTreeMap<u64, Vec<u8>>, at: u64, buf: &mut [u8]) {
    let end = at + (buf.len() / SECTOR_BYTES) as u64;
    let before = written.range(..at).next_back().map(|(&from, _)| from);
    for (&from, bytes) in written.range(before.unwrap_or(at)..end) {
        let (skip, to) = match from < at {
            true => ((at - from) as usize * SECTOR_BYTES, 0),
            false => (0, (from - at) as usize * SECTOR_BYTES),
        };
        let bytes = bytes.get(skip..).unwrap_or(&[]);
        let len = bytes.len().min(buf.len() - to);
        buf[to..to + len].copy_from_slice(&bytes[..len]);
    }
}

/// Memory of this process in bytes, as Linux counts it.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// How often the kernel has taken the processor away from this thread.
pub fn switches() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let count = text.split("nonvoluntary_ctxt_switches:").nth(1);
    count.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

impl Disk for Memory {
    fn name(&self) -> String {
        "memory".to_string()
    }
    fn size_sectors(&self) -> u64 {
        self.sectors
    }
    fn block_sectors(&self) -> u32 {
        SECTORS
    }
    fn alloc(&self, bytes: usize) -> Buf {
        Buf::new(Box::new(vec![0u8; bytes]))
    }
    fn read(&self, at: Sector, mut buf: Buf) -> BufFuture {
        let written = self.written.borrow();
        for (i, to) in buf.chunks_mut(BLOCK_BYTES).enumerate() {
            let block = at.0 + (i * SECTORS as usize) as u64;
            if let Some(bytes) = written.get(&block) {
                to.copy_from_slice(bytes);
            }
        }
        drop(written);
        Box::pin(async move {
            yield_now().await;
            (buf, Ok(()))
        })
    }
    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        if self.keeps_blocks || buf.len() > BLOCK_BYTES {
            let mut written = self.written.borrow_mut();
            for (i, bytes) in buf.chunks(BLOCK_BYTES).enumerate() {
                let block = at.0 + (i * SECTORS as usize) as u64;
                written.insert(block, bytes.into());
            }
        }
        Box::pin(async move {
            yield_now().await;
            (buf, Ok(()))
        })
    }
    fn flush(&self) -> DoneFuture {
        Box::pin(async {
            yield_now().await;
            Ok(())
        })
    }
    fn unmap(&self, _: Sector, _: u64) -> DoneFuture {
        Box::pin(std::future::ready(Ok(())))
    }
    fn write_zeroes(&self, _: Sector, _: u64) -> DoneFuture {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Such a device, of so many buckets, with nothing on it.
pub fn device(buckets: u64) -> Rc<dyn Disk> {
    Rc::new(Memory {
        sectors: buckets * u64::from(BUCKET),
        written: RefCell::default(),
        keeps_blocks: true,
    })
}

/// The set on a device; a new one on a blank device.
pub async fn start_on(exec: Executor, rng: Rc<Rng>, disk: Rc<dyn Disk>) -> Rc<CacheSet> {
    let sb = match read_super(&disk).await {
        Ok(Super::Cache(sb)) => sb,
        _ => {
            let (block, sectors) = (SECTORS as u16, disk.size_sectors());
            CacheSuper::new(rng.uuid(), rng.uuid(), sectors, block, BUCKET).unwrap()
        }
    };
    let host = SimHost::bare(rng);
    let set = CacheSet::start(&host, exec, disk, sb).await;
    set.unwrap_or_else(|e| panic!("{e}"))
}

/// A new set on such a device, of so many buckets.
pub async fn start(exec: Executor, rng: Rc<Rng>, buckets: u64) -> Rc<CacheSet> {
    let disk = Memory {
        sectors: buckets * u64::from(BUCKET),
        written: RefCell::default(),
        keeps_blocks: false,
    };
    start_on(exec, rng, Rc::new(disk)).await
}
