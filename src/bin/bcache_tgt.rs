//! The target: SPDK's own (NVMe-oF, iSCSI, vhost, every bdev module of the build) with bcache.
#![deny(unsafe_code)]

fn main() {
    std::process::exit(spdk_bcache::spdk::app::run(std::env::args()));
}
