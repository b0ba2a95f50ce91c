"""The test kit: everything the system tests, the demo and the benchmark need around a target process.

    rpc       JSON-RPC over a target's Unix socket
    target    one SPDK application: start, wait, stop, kill, clean up
    images    sparse files, golden fixtures
    tools     external programs with time limits; blkio, compiled on first use
    volume    cache sets of a target: bdevs, creation, what the RPCs say of them
    export    a bdev over iSCSI, NVMe/TCP, vhost-user-blk
    guest     Debian's kernel in QEMU
    perf      bdevperf

Standard library only. Nothing here waits without a limit, and what is missing on the machine is an error that names
the Debian package.
"""
