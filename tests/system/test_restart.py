"""Restarts: in good order and by SIGKILL in the middle of writing, with a checker that knows what was flushed."""

import pytest

from kit import export, pattern, volume

ROUNDS = 4
WRITING = {"align": 1, "max": 512, "depth": 32, "flush": 20, "reads": 30}


class Exported:
    """A pair, its target, its volume over iSCSI, and the pattern that follows the volume."""

    def __init__(self, folder, target, **options):
        self.target = target
        self.pair = volume.Pair(folder, cache_mb=48, backing_mb=96)
        self.pair.create(target, **options)
        self.export = export.Iscsi(self.pair.name)
        self.data = pattern.Pattern(folder, self.export.start(target))

    def restart(self, kill):
        self.target.restart(kill)
        entry = self.pair.reopen(self.target)
        self.export.start(self.target)
        return entry

    def kill_in_the_middle(self, flushes, **options):
        """Writes until so many flushes were acknowledged, then kills the target."""
        writing = self.data.begin(count=400000, **dict(WRITING, **options))
        volume.wait_until("%d flushes" % flushes, lambda: writing.flushed() >= flushes or writing.process.poll()
                          is not None, limit=60, step=0.01)
        self.target.kill()
        writing.wait(expect=(pattern.EXIT_LOST,), limit=30)


@pytest.mark.parametrize("mode", ["writethrough", "writeback", "writearound", "none"])
def test_clean_restart(start, folder, mode):
    disk = Exported(folder, start(), mode=mode)
    disk.data.write(count=1500, **WRITING)
    before = volume.volume(disk.target, "Vol0")
    entry = disk.restart(kill=False)
    assert {key: entry[key] for key in ("uuid", "cache_mode", "set", "inode", "size_bytes")} == \
        {key: before[key] for key in ("uuid", "cache_mode", "set", "inode", "size_bytes")}
    disk.data.verify()
    disk.data.write(count=500, **WRITING)
    disk.data.verify()


@pytest.mark.parametrize("mode", ["writethrough", "writearound"])
def test_killed(start, folder, mode):
    disk = Exported(folder, start(), mode=mode)
    disk.kill_in_the_middle(15)
    disk.restart(kill=True)
    disk.data.verify()


@pytest.mark.limit(180)
@pytest.mark.parametrize("cpumask", ["0x1", "0x3"])
def test_killed_again_and_again_in_writeback(start, folder, cpumask):
    disk = Exported(folder, start(cpumask=cpumask), mode="writeback", bucket_size_kb=32)
    for turn in range(ROUNDS):
        disk.kill_in_the_middle(10 + 15 * turn, hot=40)
        disk.target.start()
        disk.pair.reopen(disk.target)
        disk.export.start(disk.target)
        disk.data.verify()
    # what survived is what a clean restart and a full write-back leave, too
    disk.restart(kill=False)
    disk.data.verify()
    volume.write_back(disk.target, "Vol0")
    disk.data.verify()


def test_killed_during_write_back(start, folder):
    disk = Exported(folder, start(), mode="writeback")
    disk.data.write(count=3000, **WRITING)
    disk.target.call("bdev_bcache_flush_start", name="Vol0")
    disk.restart(kill=True)
    disk.data.verify()
    volume.write_back(disk.target, "Vol0")
    disk.data.verify()


def test_written_back_data_are_on_the_backing_device(start, folder):
    """After detach the backing device holds everything by itself, from its data offset on."""
    disk = Exported(folder, start(), mode="writeback")
    disk.data.write(count=1500, **WRITING)
    volume.write_back(disk.target, "Vol0")
    disk.export.stop(disk.target)
    assert disk.target.call("bdev_bcache_detach", name="Vol0", limit=60) is True
    disk.data.device = disk.export.start(disk.target)
    disk.data.verify()


def test_cache_is_smaller_than_what_is_written(start, folder):
    """Buckets are reused many times over; nothing is lost on the way, nor by a kill at the end."""
    disk = Exported(folder, start(), mode="writeback", bucket_size_kb=32)
    for _ in range(3):
        disk.data.write(count=3000, align=8, max=1024, depth=32, flush=50, reads=30, limit=90)
        disk.data.verify()
    disk.restart(kill=True)
    disk.data.verify()


def test_two_volumes_on_one_set_are_killed_together(start, folder):
    target = start()
    first = volume.Pair(folder, "Vol0", backing_mb=64, tag="0")
    second = volume.Pair(folder, "Vol1", backing_mb=64, tag="1")
    first.create(target, mode="writeback")
    volume.aio(target, second.backing_bdev, second.backing)
    target.call("bdev_bcache_create", name="Vol1", cache_bdev=first.cache_bdev, backing_bdev=second.backing_bdev,
                mode="writeback", limit=60)
    exports = {name: export.Iscsi(name) for name in ("Vol0", "Vol1")}
    data = {}
    for number, (name, one) in enumerate(exports.items()):
        one.start(target, tag=number + 1)
        data[name] = pattern.Pattern(folder, one.url, name=name)
    writings = [one.begin(count=400000, **WRITING) for one in data.values()]
    volume.wait_until("10 flushes of both", lambda: all(one.flushed() >= 10 for one in writings), limit=60, step=0.01)
    target.kill()
    for one in writings:
        one.wait(expect=(pattern.EXIT_LOST,), limit=30)
    target.start()
    for name, path in ((first.cache_bdev, first.cache), (first.backing_bdev, first.backing),
                       (second.backing_bdev, second.backing)):
        volume.aio(target, name, path)
    for number, (name, one) in enumerate(exports.items()):
        volume.wait_volume(target, name)
        one.start(target, tag=number + 1)
        data[name].verify()


def test_flash_volume_survives_a_kill(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target)
    uuid = volume.the_set(target)["set"]
    target.call("bdev_bcache_create_flash_volume", set=uuid, name="Flash0", size_mb=16, limit=60)
    exported = export.Iscsi("Flash0")
    data = pattern.Pattern(folder, exported.start(target))
    data.write(count=800, align=8, max=64, flush=20, reads=30)
    target.restart(kill=True)
    pair.reopen(target)
    volume.wait_volume(target, "Flash0")
    exported.start(target)
    data.verify()
