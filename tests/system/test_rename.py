"""A volume gets another name while clients use it: over each transport, and under what stands on it."""

import threading
import time

import pytest

from kit import export, pattern, perf, volume
from kit.rpc import RpcError

LOAD_SECONDS = 6
WRITING = {"align": 8, "min": 8, "max": 64, "depth": 8}


class Load(threading.Thread):
    """A client's work beside the test; `end` raises what it failed with."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work = work
        self.failure = None
        self.start()

    def run(self):
        try:
            self.work()
        except Exception as failure:  # pylint: disable=broad-except
            self.failure = failure

    def end(self, limit=90):
        """Waits for the end of the work."""
        self.join(limit)
        assert not self.is_alive(), "the client does not end"
        if self.failure is not None:
            raise self.failure


def client(kind, folder, made, started):
    """What reads, writes and verifies through an export."""
    if kind == "iscsi":
        data = pattern.Pattern(folder, started)
        return lambda: data.write(count=4000, flush=20, reads=30, limit=80, **WRITING)
    if kind == "nvmf":
        config = perf.bdev_config(("bdev_nvme_attach_controller", dict(made.address(), name="Nvme")))
        bdev = "Nvmen1"
    else:
        config = perf.bdev_config(("bdev_virtio_attach_controller", {
            "name": "Virtio", "dev_type": "blk", "trtype": "user", "traddr": str(started), "vq_count": 4}))
        bdev = "Virtio"
    work = perf.workload(bdev, "verify", LOAD_SECONDS, depth=16)
    return lambda: perf.run(folder, config, work, cpumask="0x2", memory_mb=768, shares_memory=kind == "vhost")


def rename(target, name, new):
    assert target.call("bdev_bcache_rename", name=name, new_name=new) is True
    return new


@pytest.mark.parametrize("kind", ["nvmf", "iscsi", "vhost"])
def test_exports_stay_connected(start, folder, kind):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    made = export.KINDS[kind]("Vol0")
    load = Load(client(kind, folder, made, made.start(target)))
    time.sleep(1)
    name = "Vol0"
    for new in ("Fresh", "Vol0", "Other", "Fresh"):
        name = rename(target, name, new)
        assert export.exported(target, kind) == [name]
        assert list(volume.volumes(target)) == [name]
        for known in ("Vol0", name):
            (entry,) = target.call("bdev_get_bdevs", name=known)
            assert entry["name"] == name and entry["driver_specific"]["bcache"]["name"] == name
        time.sleep(0.5)
    load.end()
    target.save_config(folder / "saved.json")
    target.config = folder / "saved.json"
    for kill in (True, False):
        target.restart(kill=kill)
        assert export.exported(target, kind) == ["Fresh"]
        assert list(volume.volumes(target)) == ["Fresh"]
        assert not [bdev for bdev in target.call("bdev_get_bdevs") if "Vol0" in [bdev["name"], *bdev["aliases"]]]
    target.stop()


def test_what_stands_on_a_volume_stays_there(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    target.call("bdev_passthru_create", name="Top0", base_bdev_name="Vol0")
    data = pattern.Pattern(folder, export.Iscsi("Top0").start(target))
    data.write(count=200, flush=20, reads=30, **WRITING)
    data.verify()
    rename(target, "Vol0", "Fresh")
    data.write(count=200, flush=20, reads=30, **WRITING)
    target.save_config(folder / "saved.json")
    target.config = folder / "saved.json"
    target.restart()
    data.verify()
    assert list(volume.volumes(target)) == ["Fresh"]
    target.stop()


def test_a_volume_beneath_a_volume_keeps_its_name(start, folder):
    target = start()
    lower = volume.Pair(folder, name="Low0")
    lower.create(target, mode="writeback")
    volume.malloc(target, "Fast1", 48)
    target.call("bdev_bcache_create", limit=60, name="Top0", cache_bdev="Fast1", backing_bdev="Low0")
    with pytest.raises(RpcError, match="Low0 is used by Top0"):
        rename(target, "Low0", "Fresh")
    rename(target, "Top0", "Fresh")
    assert sorted(volume.volumes(target)) == ["Fresh", "Low0"]
    target.call("bdev_bcache_delete", name="Fresh", limit=60)
    rename(target, "Low0", "Top0")
    target.stop()


def test_the_names_of_a_volume_that_is_gone_are_free(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    for _ in range(2):
        rename(target, "Vol0", "Fresh")
        target.call("bdev_bcache_delete", name="Fresh", limit=60)
        for name in ("Vol0", "Fresh", "Vol0"):
            with pytest.raises(RpcError):
                target.call("bdev_get_bdevs", name=name)
            volume.malloc(target, name, 16)
            target.call("bdev_malloc_delete", name=name)
        target.call("bdev_bcache_register", bdev_name=pair.backing_bdev, name="Vol0", limit=60)
    target.stop()
