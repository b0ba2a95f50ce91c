//! A device in memory that answers after everybody else had a turn, and a set on it: for benches.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use spdk_bcache::disk::{Buf, BufFuture, Disk, DoneFuture};
use spdk_bcache::format::superblock::CacheSuper;
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::CacheSet;
use spdk_bcache::sim::host::SimHost;
use spdk_bcache::task::{Executor, yield_now};
use spdk_bcache::units::{SECTOR_BYTES, Sector};

/// Sectors of a bucket.
pub const BUCKET: u32 = 1024;
/// Sectors of a block, and of every extent.
pub const SECTORS: u32 = 8;

/// A device that keeps what was written to it, by the sector where the write began.
struct Memory {
    sectors: u64,
    written: RefCell<HashMap<u64, Vec<u8>>>,
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
        if let Some(bytes) = self.written.borrow().get(&at.0) {
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
        }
        Box::pin(async move {
            yield_now().await;
            (buf, Ok(()))
        })
    }
    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        // Host data are never looked at, and would take the memory of the machine.
        if buf.len() > SECTORS as usize * SECTOR_BYTES {
            self.written.borrow_mut().insert(at.0, buf.to_vec());
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

/// A new set on such a device, of so many buckets.
pub async fn start(exec: Executor, rng: Rc<Rng>, buckets: u64) -> Rc<CacheSet> {
    let sectors = buckets * u64::from(BUCKET);
    let disk: Rc<dyn Disk> = Rc::new(Memory {
        sectors,
        written: RefCell::default(),
    });
    let sb = CacheSuper::new(rng.uuid(), rng.uuid(), sectors, SECTORS as u16, BUCKET);
    let host = SimHost::new(rng);
    let set = CacheSet::start(&host, exec, disk, sb.unwrap()).await;
    set.unwrap_or_else(|e| panic!("{e}"))
}
