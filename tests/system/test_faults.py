"""Devices that fail, are slow, or go, and a bdev layer short of I/Os: nothing is lost, nothing hangs."""

import pytest

from kit import export, images, pattern, tools, volume
from kit.rpc import RpcError

WRITING = {"align": 8, "min": 8, "max": 64, "depth": 8}
FOREVER = 1 << 30
# sectors at a volume's beginning: what lies beyond was never written
SPAN = 65536


def error_on(target, bdev):
    """SPDK's error bdev over a bdev, which does what it is told to fail at."""
    target.call("bdev_error_create", base_name=bdev)
    return "EE_" + bdev


def inject(target, bdev, what, num=FOREVER):
    """The next `num` I/Os of that type fail; what="clear" ends it."""
    target.call("bdev_error_inject_error", name=bdev, io_type=what, error_type="failure", num=num)


class Faulty:
    """A volume over error bdevs, exported, and the pattern that follows it."""

    def __init__(self, folder, target, **options):
        self.target = target
        self.pair = volume.Pair(folder, cache_mb=48, backing_mb=96)
        volume.aio(target, self.pair.cache_bdev, self.pair.cache)
        volume.aio(target, self.pair.backing_bdev, self.pair.backing)
        self.cache = error_on(target, self.pair.cache_bdev)
        self.backing = error_on(target, self.pair.backing_bdev)
        target.call("bdev_bcache_create", limit=60, name="Vol0", cache_bdev=self.cache, backing_bdev=self.backing,
                    **options)
        self.uuid = volume.the_set(target)["set"]
        self.export = export.Iscsi("Vol0")
        self.data = pattern.Pattern(folder, self.export.start(target))

    def set(self):
        return volume.the_set(self.target)

    def options(self, **options):
        self.target.call("bdev_bcache_set_set_options", set=self.uuid, **options)

    def fail(self):
        """Makes the set's next journal entry fail."""
        inject(self.target, self.cache, "write")
        with pytest.raises(RpcError):
            self.target.call("bdev_bcache_gc", set=self.uuid, limit=60)
        volume.wait_until("the set failed", lambda: self.set()["state"] == "failed", limit=20)

    def restart(self):
        """A new life, in which nothing fails: without the error bdevs, so the devices are not taken unasked."""
        self.target.restart(kill=True)
        self.pair.add_bdevs(self.target)
        for bdev in (self.pair.cache_bdev, self.pair.backing_bdev):
            self.target.call("bdev_bcache_register", bdev_name=bdev, limit=60)
        volume.wait_volume(self.target, "Vol0")
        self.export.start(self.target)


def test_clean_data_that_cannot_be_read_come_from_the_backing_device(start, folder):
    disk = Faulty(folder, start(), mode="writethrough")
    disk.options(io_error_limit=1000)
    disk.data.write(count=300, flush=50, **WRITING)
    inject(disk.target, disk.cache, "read", 20)
    disk.data.verify()
    found = disk.set()
    assert found["state"] == "running" and found["io_errors"]["reads"] == 20, found
    disk.data.verify()
    disk.target.stop()


def test_a_write_that_the_cache_does_not_take_goes_to_the_backing_device(start, folder):
    disk = Faulty(folder, start(), mode="writeback")
    # no journal entry comes between the injected error and the data that it is for
    disk.options(io_error_limit=1000, journal_delay_ms=60000)
    disk.data.write(count=100, flush=10, **WRITING)
    disk.data.verify()
    inject(disk.target, disk.cache, "write", 1)
    disk.data.write(count=1, **dict(WRITING, depth=1))
    found = disk.set()
    assert found["state"] == "running" and found["io_errors"]["writes"] == 1, found
    disk.data.verify()
    disk.target.stop()


def test_a_set_that_failed_can_be_read_and_its_dirty_data_are_there_after_a_restart(start, folder):
    disk = Faulty(folder, start(), mode="writeback")
    disk.target.call("bdev_bcache_set_options", name="Vol0", writeback_running=False)
    disk.data.write(count=300, flush=50, **WRITING)
    disk.data.verify()
    dirty = volume.volume(disk.target, "Vol0")["dirty_bytes"]
    assert dirty > 0
    disk.fail()
    assert "not written" in disk.set()["failure"]
    disk.data.verify()
    entry = volume.volume(disk.target, "Vol0")
    assert entry["running"] is True and entry["dirty_bytes"] == dirty and entry["state"] == "dirty"
    disk.restart()
    assert volume.volume(disk.target, "Vol0")["dirty_bytes"] == dirty
    disk.data.verify()
    volume.write_back(disk.target, "Vol0")
    disk.data.verify()
    disk.target.stop()


def test_a_clean_volume_goes_on_without_its_failed_cache(start, folder):
    disk = Faulty(folder, start(), mode="writethrough")
    disk.data.write(count=300, flush=50, **WRITING)
    disk.fail()
    volume.wait_until("the volume alone", lambda: volume.volume(disk.target, "Vol0")["state"] == "no cache", limit=20)
    disk.data.verify()
    disk.data.write(count=300, flush=50, **WRITING)
    disk.data.verify()
    disk.restart()
    assert volume.volume(disk.target, "Vol0")["state"] == "no cache"
    disk.data.verify()
    disk.target.call("bdev_bcache_attach", name="Vol0", set=volume.the_set(disk.target)["set"], limit=60)
    disk.data.verify()
    disk.target.stop()


def test_a_backing_device_that_fails_keeps_dirty_data_and_hangs_nothing(start, folder):
    disk = Faulty(folder, start(), mode="writeback")
    # write-back tries again and again, and the machine's speed says how often: the device is not to be given up here
    disk.target.call("bdev_bcache_set_options", name="Vol0", io_error_limit=1 << 20)
    disk.data.write(count=300, flush=50, **WRITING)
    inject(disk.target, disk.backing, "write")
    with pytest.raises(RpcError):
        disk.target.call("bdev_bcache_detach", name="Vol0", limit=60)
    assert volume.volume(disk.target, "Vol0")["state"] == "dirty"
    disk.data.verify()
    inject(disk.target, disk.backing, "clear")
    assert disk.target.call("bdev_bcache_detach", name="Vol0", limit=60) is True
    disk.data.verify()
    disk.target.stop()


def test_a_backing_device_that_was_given_up_serves_again_when_it_is_told_to(start, folder):
    disk = Faulty(folder, start(), mode="writeback")
    disk.target.call("bdev_bcache_set_options", name="Vol0", io_error_limit=2)
    disk.data.write(count=300, flush=50, span=SPAN, **WRITING)
    inject(disk.target, disk.backing, "write")
    with pytest.raises(RpcError):
        disk.target.call("bdev_bcache_detach", name="Vol0", limit=60)
    entry = volume.volume(disk.target, "Vol0")
    assert entry["options"]["io_disable"] is True and entry["state"] == "dirty" and entry["io_errors"] >= 2, entry
    # a miss fails at once, though the device would read; more of them than SPDK 20.07's iSCSI outlives are not tried
    with pytest.raises(tools.CommandFailed, match="Input/output error"):
        disk.data.read(at=SPAN, span=8, size=8, count=1)
    inject(disk.target, disk.backing, "clear")
    disk.target.call("bdev_bcache_set_options", name="Vol0", io_disable=False)
    disk.data.verify()
    assert disk.target.call("bdev_bcache_detach", name="Vol0", limit=60) is True
    disk.data.verify()
    disk.target.stop()


def test_a_write_that_finds_no_space_fails_and_later_ones_do_not(start, folder):
    """Dirty data that cannot be written back leave a volume without a backing device no room."""
    disk = Faulty(folder, start(), mode="writeback")
    disk.target.call("bdev_bcache_set_options", name="Vol0", io_error_limit=1 << 20, writeback_running=False)
    disk.data.write(count=960, flush=96, align=64, min=64, max=64, depth=8)
    inject(disk.target, disk.backing, "write")
    disk.target.call("bdev_bcache_create_flash_volume", set=disk.uuid, name="Flash0", size_mb=32, limit=60)
    flash = export.Iscsi("Flash0")
    second = pattern.Pattern(folder, flash.start(disk.target, tag=2), name="second")
    filling = dict(count=2000, flush=100, align=64, min=64, max=64, depth=8)
    with pytest.raises(tools.CommandFailed, match="sense key"):
        second.write(**filling)
    assert disk.set()["state"] == "running"
    # what was acknowledged is there, and with room again writing goes on
    second.verify()
    inject(disk.target, disk.backing, "clear")
    volume.write_back(disk.target, "Vol0")
    second.write(**filling)
    second.verify()
    disk.data.verify()
    disk.target.stop()


def test_a_backing_device_may_be_taken_away_under_io(start, folder):
    target = start()
    pair = volume.Pair(folder, cache_mb=48, backing_mb=96)
    pair.create(target, mode="writeback")
    exported = export.Iscsi("Vol0")
    data = pattern.Pattern(folder, exported.start(target))
    writing = data.begin(count=400000, flush=20, reads=30, **WRITING)
    volume.wait_until("some flushes", lambda: writing.flushed() >= 10, limit=60, step=0.01)
    target.call("bdev_aio_delete", name=pair.backing_bdev, limit=60)
    # its export goes with it, or answers with errors
    writing.wait(expect=(1, pattern.EXIT_LOST), limit=30)
    volume.wait_until("the volume away", lambda: not any(v["running"] for v in volume.volumes(target).values()),
                      limit=30)
    volume.aio(target, pair.backing_bdev, pair.backing)
    volume.wait_volume(target, "Vol0")
    exported.port = export.free_port()
    fresh = export.Iscsi("Vol0")
    fresh.node = "again"
    fresh.url = fresh.url.rsplit(":", 1)[0] + ":again/0"
    data.device = fresh.start(target, tag=2)
    data.verify()
    target.stop()


@pytest.mark.parametrize("mode", ["writethrough", "writeback"])
def test_hosts_keep_a_volume_whose_cache_is_taken_away_and_brought_back(start, folder, mode):
    target = start()
    pair = volume.Pair(folder, cache_mb=48, backing_mb=96)
    pair.create(target, mode=mode)
    target.call("bdev_bcache_set_options", name="Vol0", writeback_running=False)
    data = pattern.Pattern(folder, export.Iscsi("Vol0").start(target))
    writing = data.begin(count=6000, flush=20, reads=30, **WRITING)
    volume.wait_until("some flushes", lambda: writing.flushed() >= 10, limit=60, step=0.01)
    for _ in range(2):
        target.call("bdev_aio_delete", name=pair.cache_bdev, limit=60)
        entry = volume.volume(target, "Vol0")
        assert entry["running"] is True and entry["inode"] is None, entry
        assert entry["state"] == ("dirty" if mode == "writeback" else "inconsistent"), entry
        volume.aio(target, pair.cache_bdev, pair.cache)
        volume.wait_until("the cache back", lambda: volume.volume(target, "Vol0")["inode"] is not None, limit=30)
    writing.wait(limit=90)
    data.verify()
    target.restart(kill=True)
    pair.reopen(target)
    data.device = export.Iscsi("Vol0").start(target)
    data.verify()
    target.stop()


def test_slow_devices(start, folder):
    target = start()
    pair = volume.Pair(folder, cache_mb=48, backing_mb=96)
    pair.add_bdevs(target)
    for base, name, us in ((pair.cache_bdev, "SlowCache", 5000), (pair.backing_bdev, "SlowBack", 50000)):
        target.call("bdev_delay_create", base_bdev_name=base, name=name, avg_read_latency=us, p99_read_latency=10 * us,
                    avg_write_latency=us, p99_write_latency=10 * us)
    target.call("bdev_bcache_create", limit=60, name="Vol0", cache_bdev="SlowCache", backing_bdev="SlowBack",
                mode="writeback")
    data = pattern.Pattern(folder, export.Iscsi("Vol0").start(target))
    data.write(count=400, flush=40, reads=30, limit=100, **WRITING)
    target.call("bdev_bcache_set_cache_mode", name="Vol0", mode="writethrough")
    data.verify()
    data.write(count=100, flush=40, reads=30, limit=100, **WRITING)
    data.verify()
    assert target.call("bdev_bcache_detach", name="Vol0", limit=100) is True
    data.verify()
    target.stop()


@pytest.mark.parametrize("mode", ["writethrough", "writeback"])
def test_few_ios_in_the_bdev_layer(start, folder, mode):
    """A pool so small that I/Os below find it empty all the time. The host's own never take most of it: were they to
    take all, no bdev that stands on another could go on."""
    target = start(wait_for_rpc=True, cpumask="0x3")
    target.call("bdev_set_options", bdev_io_pool_size=192, bdev_io_cache_size=4)
    target.call("framework_start_init", limit=60)
    pair = volume.Pair(folder, cache_mb=48, backing_mb=96)
    pair.create(target, mode=mode, bucket_size_kb=32)
    data = pattern.Pattern(folder, export.Iscsi("Vol0").start(target))
    for _ in range(2):
        data.write(count=6000, flush=50, reads=30, limit=100, **dict(WRITING, max=16, depth=32))
        data.verify(size=64)
    volume.write_back(target, "Vol0")
    assert target.call("bdev_bcache_detach", name="Vol0", limit=60) is True
    data.verify(size=64)
    target.stop()


def test_a_volume_grows_with_its_backing_device(start, folder):
    target = start()
    volume.aio(target, "pool", images.sparse(folder / "pool.img", 256 * images.MIB))
    volume.aio(target, "cache", images.sparse(folder / "cache.img", 48 * images.MIB))
    target.call("bdev_lvol_create_lvstore", bdev_name="pool", lvs_name="store", limit=60)
    volume.lvol(target, "create", 64, lvs_name="store", lvol_name="back")
    target.call("bdev_bcache_create", limit=60, name="Vol0", cache_bdev="cache", backing_bdev="store/back",
                block_size=4096, mode="writeback")
    before = volume.volume(target, "Vol0")["size_bytes"]
    volume.lvol(target, "resize", 96, name="store/back")
    volume.wait_until("the new size",
                      lambda: volume.volume(target, "Vol0")["size_bytes"] == before + 32 * images.MIB, limit=20)
    (bdev,) = target.call("bdev_get_bdevs", name="Vol0")
    assert bdev["num_blocks"] * bdev["block_size"] == before + 32 * images.MIB
    data = pattern.Pattern(folder, export.Iscsi("Vol0").start(target))
    data.write(count=300, flush=50, at=before // 512 - 4096, **WRITING)
    data.verify()
    target.stop()
