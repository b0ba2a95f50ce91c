"""Taking down what others stand on, long operations, and the end of the process in the middle of them."""

import signal
import time

import pytest

from kit import export, images, pattern, volume
from kit.rpc import RpcClient, RpcError

WRITING = {"align": 8, "min": 8, "max": 64, "depth": 8}


def slow_down(target, bdev, seconds):
    """Writes of a delay bdev take that long from now on."""
    for kind in ("avg_write", "p99_write"):
        target.call("bdev_delay_update_latency", delay_bdev_name=bdev, latency_type=kind,
                    latency_us=int(seconds * 1000000))


def delayed(target, bdev):
    """SPDK's delay bdev over a bdev, quick at first."""
    target.call("bdev_delay_create", base_bdev_name=bdev, name="D" + bdev, avg_read_latency=0, p99_read_latency=0,
                avg_write_latency=1, p99_write_latency=1)
    return "D" + bdev


class Tower:
    """Vol1, whose backing device lies on Vol0: directly, or through another module's bdev."""

    def __init__(self, folder, target, between):
        self.target = target
        self.between = between
        self.files = {name: images.sparse(folder / name, mb * images.MIB)
                      for name, mb in (("F0", 64), ("S0", 256), ("F1", 48))}
        self.add_bdevs()
        target.call("bdev_bcache_create", name="Vol0", cache_bdev="F0", backing_bdev="S0", mode="writeback", limit=60)
        self.middle = {"nothing": "Vol0", "passthru": "P0", "lvol": "store/L0"}[between]
        if between == "lvol":
            target.call("bdev_lvol_create_lvstore", bdev_name="Vol0", lvs_name="store", limit=60)
            volume.lvol(target, "create", 64, lvs_name="store", lvol_name="L0")
        self.add_passthru()
        target.call("bdev_bcache_create", name="Vol1", cache_bdev="F1", backing_bdev=self.middle, mode="writeback",
                    block_size=4096, limit=60)

    def add_bdevs(self):
        for name, path in self.files.items():
            volume.aio(self.target, name, path, 4096 if name == "F1" else 512)

    def add_passthru(self):
        if self.between == "passthru":
            self.target.call("bdev_passthru_create", base_bdev_name="Vol0", name="P0")


@pytest.mark.parametrize("between", ["nothing", "passthru", "lvol"])
def test_a_volume_over_a_volume(start, folder, between):
    target = start()
    tower = Tower(folder, target, between)
    exported = export.Iscsi("Vol1")
    data = pattern.Pattern(folder, exported.start(target))
    data.write(count=200, flush=50, **WRITING)
    lower = volume.volume(target, "Vol0")["set"]
    for method, params in (("delete", {"name": "Vol0"}), ("stop_set", {"set": lower})):
        with pytest.raises(RpcError, match="Vol0 is used by Vol1"):
            target.call("bdev_bcache_" + method, limit=10, **params)
    target.stop(limit=30)
    target.start()
    tower.add_bdevs()
    volume.wait_volume(target, "Vol0")
    tower.add_passthru()
    volume.wait_volume(target, "Vol1")
    exported.start(target)
    data.verify()
    exported.stop(target)
    # what lies at the bottom goes, and all goes with it
    target.call("bdev_aio_delete", name="S0", limit=30)
    volume.wait_until("both away", lambda: not any(v["running"] for v in volume.volumes(target).values()), limit=30)
    target.call("bdev_bcache_get_sets")
    target.stop(limit=30)


def test_a_shutdown_with_other_modules_bdevs_on_volumes(start, folder):
    """They go first, and write to the volumes that they lie on: a store of lvols with nothing in it, one with an lvol,
    and a split."""
    target = start()
    files = {name: images.sparse(folder / name, mb * images.MIB) for name, mb in (("F", 96), ("S0", 64), ("S1", 64),
                                                                                  ("S2", 64))}
    for name, path in files.items():
        volume.aio(target, name, path)
    for number in range(3):
        target.call("bdev_bcache_create", name="V%d" % number, cache_bdev="F", backing_bdev="S%d" % number,
                    mode="writeback", limit=60)
    for number in range(2):
        target.call("bdev_lvol_create_lvstore", bdev_name="V%d" % number, lvs_name="store%d" % number, limit=60)
    volume.lvol(target, "create", 32, lvs_name="store1", lvol_name="L")
    target.call("bdev_split_create", base_bdev="V2", split_count=2)
    target.stop(limit=30)
    target.start()
    for name, path in files.items():
        volume.aio(target, name, path)
    volume.wait_until("the lvol", lambda: any("store1/L" in b["aliases"] for b in target.call("bdev_get_bdevs")))
    for number in range(3):
        volume.wait_volume(target, "V%d" % number)
    target.stop(limit=30)


def test_what_a_host_writes_into_a_volume_is_not_brought_up(start, folder):
    """A tenant's volume bears a superblock: of a volume that exists, and is valid."""
    target = start()
    pair = volume.Pair(folder, cache_mb=48, backing_mb=96)
    pair.create(target)
    other = volume.Pair(folder, name="Other", cache_mb=48, backing_mb=64, tag="other")
    other.create(target)
    target.call("bdev_bcache_detach", name="Other", limit=60)
    target.stop()
    # the volume's data begin 8 KiB into its backing device
    with open(pair.backing, "r+b") as back:
        back.seek(8192)
        back.write(other.backing.read_bytes()[:65536])
    target.start()
    pair.reopen(target)
    time.sleep(0.5)
    assert set(volume.volumes(target)) == {"Vol0"}
    # told to, it does; and from then on by itself
    assert target.call("bdev_bcache_register", bdev_name="Vol0", limit=30)["kind"] == "backing"
    target.restart()
    pair.reopen(target)
    volume.wait_volume(target, "Other")
    target.stop()


class Slow:
    """A volume with dirty data over a device that takes seconds for a write, and one beside it."""

    def __init__(self, folder, target):
        self.pair = volume.Pair(folder, cache_mb=48, backing_mb=64)
        self.pair.add_bdevs(target)
        self.bdev = delayed(target, self.pair.backing_bdev)
        target.call("bdev_bcache_create", name="Vol0", cache_bdev=self.pair.cache_bdev, backing_bdev=self.bdev,
                    mode="writeback", limit=60)
        target.call("bdev_bcache_set_options", name="Vol0", writeback_running=False)
        self.export = export.Iscsi("Vol0")
        self.data = pattern.Pattern(folder, self.export.start(target))
        self.data.write(count=60, flush=10, align=8, min=8, max=8, depth=8)
        self.export.stop(target)
        self.beside = volume.Pair(folder, name="Vol1", cache_mb=48, backing_mb=64, tag="1")
        self.beside.create(target)


@pytest.mark.parametrize("method", ["bdev_bcache_detach", "bdev_bcache_unregister_set"])
def test_a_long_operation_holds_nothing_else_up_and_a_shutdown_ends_it(start, folder, method):
    target = start()
    slow = Slow(folder, target)
    slow_down(target, slow.bdev, 0.5)
    params = {"name": "Vol0"} if method.endswith("detach") else {"set": volume.volume(target, "Vol0")["set"]}
    waiting = RpcClient(target.socket)
    waiting.send(method, params)
    time.sleep(0.5)
    target.call("bdev_bcache_set_cache_mode", name="Vol1", mode="none", limit=8)
    target.call("bdev_aio_delete", name=slow.beside.backing_bdev, limit=8)
    assert target.end(signal.SIGTERM, 40) == 0
    waiting.close()
    target.start()
    slow.pair.add_bdevs(target)
    # without the delay bdev it is not taken unasked
    target.call("bdev_bcache_register", bdev_name=slow.pair.backing_bdev, limit=60)
    volume.wait_volume(target, "Vol0")
    slow.export.start(target)
    slow.data.verify()
    target.stop()


def test_a_shutdown_in_the_middle_of_a_call_of_spdks_own(start, folder):
    """Its answer comes when the server of RPCs is gone."""
    target = start()
    volume.malloc(target, "M", 64)
    slow = delayed(target, "M")
    slow_down(target, slow, 1)
    waiting = RpcClient(target.socket)
    waiting.send("bdev_lvol_create_lvstore", {"bdev_name": slow, "lvs_name": "store"})
    time.sleep(0.3)
    assert target.end(signal.SIGTERM, 40) == 0
    waiting.close()


def test_a_slow_device_leaves_its_neighbours_the_kernels_queue(start, folder):
    """All AIO bdevs of a thread share one queue. What stands on one of them and is slow, with all that write-back gives
    it, keeps neither another volume's device from its flush nor its host from the cache."""
    target = start()
    for name, mb in (("C", 64), ("B0", 128), ("B1", 128)):
        volume.aio(target, name, images.sparse(folder / name, mb * images.MIB))
    slow = delayed(target, "B0")
    for name, backing in (("V0", slow), ("V1", "B1")):
        target.call("bdev_bcache_create", name=name, cache_bdev="C", backing_bdev=backing, mode="writeback", limit=60)
        target.call("bdev_bcache_set_options", name=name, writeback_running=False)
    first = pattern.Pattern(folder, export.Iscsi("V0").start(target), name="first")
    first.write(count=200, flush=50, align=128, min=128, max=128, depth=8)
    slow_down(target, slow, 600)
    target.call("bdev_bcache_flush_start", name="V0")
    volume.wait_until("write-back", lambda: target.call("bdev_bcache_flush_status", name="V0")["in_progress"])
    time.sleep(1)
    dirty = volume.volume(target, "V0")["dirty_bytes"]
    assert dirty > 0
    exported = export.Iscsi("V1")
    second = pattern.Pattern(folder, exported.start(target, tag=2), name="second")
    second.write(count=200, flush=8, **WRITING)
    second.verify()
    exported.stop(target)
    assert target.call("bdev_bcache_delete", name="V1", limit=60) is True
    target.call("bdev_bcache_register", bdev_name="B1", limit=60)
    assert target.call("bdev_bcache_detach", name="V1", limit=60) is True
    assert volume.volume(target, "V0")["dirty_bytes"] == dirty, "the slow device has answered: nothing was shown"
    target.kill()
