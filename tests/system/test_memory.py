"""Huge pages that are used up, and what a killed target leaves in memory."""

import glob
import os
import signal

from kit import export, images, pattern, volume
from kit.rpc import RpcError

WRITING = {"align": 8, "min": 8, "max": 64, "depth": 8}


def use_up(target):
    """Takes what huge pages a target has left, in malloc bdevs: a few KB in pieces remain."""
    number = 0
    for blocks in (131072, 32768, 8192, 2048, 256):
        while True:
            try:
                target.call("bdev_malloc_create", name="Hog%d" % number, num_blocks=blocks, block_size=512)
            except RpcError:
                break
            number += 1


def test_a_set_works_and_starts_without_huge_pages(start, folder):
    """Buckets of 4 MiB: no node, no prio set can be read or written in one piece of memory that devices reach."""
    target = start(memory_mb=384)
    pair = volume.Pair(folder, cache_mb=512, backing_mb=256, block_size=4096)
    pair.create(target, mode="writeback", bucket_size_kb=4096)
    exported = export.Iscsi(pair.name)
    data = pattern.Pattern(folder, exported.start(target))
    use_up(target)
    data.write(count=400, flush=40, **WRITING)
    target.call("bdev_bcache_gc", set=volume.the_set(target)["set"], limit=60)
    volume.write_back(target, pair.name)
    data.verify()
    data.write(count=200, flush=20, **WRITING)
    found = volume.the_set(target)
    assert found["state"] == "running" and not any(found["io_errors"].values()), found
    target.restart(kill=True)
    use_up(target)
    pair.reopen(target)
    exported.start(target)
    data.verify()
    volume.write_back(target, pair.name)
    assert volume.the_set(target)["state"] == "running"
    assert target.log.read_text(errors="replace").count("huge page memory") > 1
    target.stop()


def test_a_killed_target_leaves_little_behind(start, folder):
    target = start(memory_mb=384)
    pair = volume.Pair(folder)
    pair.create(target)
    # not the kit's kill, which cleans up
    os.kill(target.process.pid, signal.SIGKILL)
    target.process.wait(30)
    left = glob.glob("/dev/shm/*.%d" % target.shared) + glob.glob("/dev/shm/*pid%d" % target.process.pid)
    left_bytes = sum(os.stat(path).st_blocks * 512 for path in left)
    assert left_bytes < 8 * images.MIB, left
    assert glob.glob("/dev/hugepages/spdk%dmap_*" % target.shared) == []
