"""Huge pages that are used up, and what a killed target leaves in memory."""

import glob
import os
import signal

import pytest

from kit import export, images, pattern, tools, volume
from kit.rpc import RpcError

WRITING = {"align": 8, "min": 8, "max": 64, "depth": 8}


@pytest.fixture
def few_pages(folder):
    """A folder of huge pages of which there are 1.5 GiB, whatever the machine has."""
    where = folder / "pages"
    where.mkdir()
    tools.run("mount", "-t", "hugetlbfs", "-o", "pagesize=2M,size=1536M", "none", where)
    yield where
    tools.run("umount", "--lazy", where)


def use_up(target):
    """Takes what huge pages a target has left, in malloc bdevs; no piece of 4 MiB remains. Their memory is aligned to
    2 MiB, so each leaves no more room than the next one's header needs."""
    number = 0
    for size_mb in (32, 8, 2):
        blocks = size_mb * images.MIB // 512 - 8
        while True:
            try:
                target.call("bdev_malloc_create", name="Hog%d" % number, num_blocks=blocks, block_size=512)
            except RpcError:
                break
            number += 1


def test_a_set_works_and_starts_without_huge_pages(start, few_pages, folder):
    """Buckets of 4 MiB: of no use is any memory as large as one."""
    target = start(memory_mb=512, arguments=["--huge-dir", str(few_pages)])
    pair = volume.Pair(folder, cache_mb=512, backing_mb=256, block_size=4096)
    pair.add_bdevs(target)
    use_up(target)
    target.call("bdev_bcache_create", limit=60, name=pair.name, cache_bdev=pair.cache_bdev,
                backing_bdev=pair.backing_bdev, mode="writeback", bucket_size_kb=4096)
    exported = export.Iscsi(pair.name)
    data = pattern.Pattern(folder, exported.start(target))
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
