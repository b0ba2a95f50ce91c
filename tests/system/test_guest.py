"""A Debian guest on a volume over vhost-user-blk: it writes, the target is killed, a second guest finds everything."""

import pytest

from kit import export, guest, pattern, volume

VERSIONS = 200000


@pytest.mark.limit(300)
def test_guest_writes_target_dies_second_guest_verifies(start, folder):
    target = start()
    pair = volume.Pair(folder, cache_mb=64, backing_mb=96)
    pair.create(target, mode="writeback")
    controller = export.VhostBlk(pair.name)
    data = pattern.Pattern(folder, "/dev/vda")

    script = "blkio write /dev/vda count=%d align=8 max=256 depth=16 flush=20 reads=20 zero=4" % VERSIONS
    first = guest.Guest(folder, script, vhost=[controller.start(target)], name="first").start()
    try:
        first.wait_lines("^@flush", 40, limit=120)
        target.kill()
    finally:
        first.kill()
    data.adopt_log(guest.log_of(first.console()), VERSIONS)

    target.start()
    pair.reopen(target)
    script = """
    blkio verify /dev/vda log=/log || exit 1
    mke2fs /dev/vda > /tmp/mke2fs && mount -t ext4 /dev/vda /mnt && cp /bin/busybox /mnt/ && umount /mnt || exit 1
    mount -t ext4 /dev/vda /mnt && cmp /bin/busybox /mnt/busybox && umount /mnt && echo "@files right"
    """
    console = guest.run(folder, script, vhost=[controller.start(target)], files={"log": data.log}, name="second",
                        limit=150)
    numbers = pattern.summary(console, "verify")
    assert numbers["bad"] == 0 and numbers["errors"] == 0 and numbers["written"] > 0
    assert "@files right" in console
    target.stop()


@pytest.mark.limit(200)
def test_requests_of_a_mebibyte(start, folder):
    """They span many buckets of 32 KiB, and the bdev layer passes most of them on in one piece."""
    target = start()
    pair = volume.Pair(folder, cache_mb=64, backing_mb=96)
    pair.create(target, mode="writeback", bucket_size_kb=32)
    controller = export.VhostBlk(pair.name)
    script = """
    echo 1024 > /sys/block/vda/queue/max_sectors_kb
    blkio write /dev/vda count=120 min=2048 max=2048 align=8 depth=4 flush=20 reads=50 log=/log || exit 1
    blkio verify /dev/vda log=/log size=2048 depth=4 || exit 1
    """
    console = guest.run(folder, script, vhost=[controller.start(target)], limit=150)
    numbers = pattern.summary(console, "verify")
    assert numbers["bad"] == 0 and numbers["errors"] == 0 and "@guest-end 0" in console, console
    stats = target.call("bdev_bcache_get_stats", name=pair.name)["total"]
    assert stats["written_bytes"] / stats["writes"] > 256 * 1024, stats
    assert stats["read_bytes"] / stats["reads"] > 256 * 1024, stats
    target.stop()
