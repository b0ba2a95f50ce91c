"""What lies beneath a volume: bdevs that stand on others, drives whose cache is volatile, devices that cannot bear a
superblock."""

import re

import pytest

from kit import export, images, nvme, pattern, volume
from kit.rpc import RpcError

LONG = 128 << 10
DEPTH = 100
WRITING = {"align": 8, "min": 8, "max": 64, "depth": 8}


def lvol(target, what, **words):
    """Creates a logical volume or clears its store; newer releases of SPDK want the size in MiB."""
    size_mb = words.pop("size_mb")
    try:
        target.call("bdev_lvol_" + what, limit=60, size_in_mib=size_mb, **words)
    except RpcError as error:
        if "decode" not in error.message:
            raise
        target.call("bdev_lvol_" + what, limit=60, size=size_mb * images.MIB, **words)


def stack(target, kind, base):
    """A bdev of that kind on another; returns its name."""
    name = base + "Up"
    if kind == "split":
        target.call("bdev_split_create", base_bdev=base, split_count=1)
        return base + "p0"
    if kind == "passthru":
        target.call("bdev_passthru_create", base_bdev_name=base, name=name)
    elif kind == "raid":
        target.call("bdev_raid_create", name=name, strip_size_kb=4, raid_level="0", base_bdevs=[base])
    elif kind == "lvol":
        target.call("bdev_lvol_create_lvstore", bdev_name=base, lvs_name="store" + base, limit=60)
        lvol(target, "create", lvs_name="store" + base, lvol_name="lv", size_mb=96)
        return "store%s/lv" % base
    return name


@pytest.mark.parametrize("kind", ["split", "passthru", "raid", "lvol"])
def test_deep_queues_over_stacks_on_aio_move(start, folder, kind):
    """Both devices are files below other bdevs, and share one queue of the kernel's."""
    target = start(memory_mb=640)
    for name in ("fast", "slow"):
        volume.aio(target, name, images.sparse(folder / (name + ".img"), 128 * images.MIB))
    target.call("bdev_bcache_create", name="Vol0", cache_bdev=stack(target, kind, "fast"),
                backing_bdev=stack(target, kind, "slow"), mode="writethrough", limit=60)
    exported = export.NvmeTcp("Vol0")
    exported.start(target)
    hosts = [nvme.Initiator(exported.port, exported.nqn) for _ in range(2)]
    blocks = LONG // 512
    for first in range(3):
        under_way = []
        for i in range(DEPTH):
            at = (first * DEPTH + i) % 300
            # misses that are filled, and writes to both devices; neighbours of each other
            under_way.append(hosts[0].read((at * 2) * blocks, blocks, LONG))
            under_way.append(hosts[1].write((at * 2 + 1) * blocks, blocks, bytes([at % 251 + 1]) * LONG))
        for command in under_way:
            command.ok()
    for at in range(0, 300, 7):
        assert bytes(hosts[0].read((at * 2 + 1) * blocks, blocks, LONG).ok().data) == bytes([at % 251 + 1]) * LONG
    for host in hosts:
        host.close()
    found = volume.the_set(target)
    assert found["state"] == "running" and found["io_errors"]["writes"] == 0, found
    target.stop()


class Drives:
    """Two NVMe drives with a volatile cache: SPDK's own NVMe/TCP target, whose namespaces are volumes that count the
    flushes which arrive."""

    def __init__(self, folder, start):
        self.far = start(name="far", memory_mb=512)
        volume.malloc(self.far, "spare", 48)
        for name in ("fast", "slow"):
            volume.aio(self.far, name, images.sparse(folder / (name + ".img"), 64 * images.MIB))
            self.far.call("bdev_bcache_create", name="Count_" + name, cache_bdev="spare", backing_bdev=name, limit=60)
        exported = export.NvmeTcp("Count_fast", "Count_slow")
        exported.start(self.far)
        self.near = start(name="near", cpumask="0x2", memory_mb=512)
        self.near.call("bdev_nvme_attach_controller", name="Drive", limit=60, **exported.address())

    def flushes(self):
        """How many arrived so far: at the cache device, at the backing device."""
        return [self.far.call("bdev_bcache_get_stats", name="Count_" + name)["total"]["flushes"]
                for name in ("fast", "slow")]


def test_flushes_reach_nvme_drives_in_every_mode(start, folder):
    drives = Drives(folder, start)
    target = drives.near
    target.call("bdev_bcache_create", name="Vol0", cache_bdev="Driven1", backing_bdev="Driven2", mode="writeback",
                limit=60)
    data = pattern.Pattern(folder, export.Iscsi("Vol0").start(target))
    # whether the flushes of writes in this mode go to the cache device, and to the backing device
    for mode, fast, slow in (("writeback", True, False), ("writethrough", False, True), ("writearound", False, True),
                             ("none", False, True), ("no cache", False, True)):
        if mode == "no cache":
            assert target.call("bdev_bcache_detach", name="Vol0", limit=60) is True
        else:
            target.call("bdev_bcache_set_cache_mode", name="Vol0", mode=mode)
        volume.write_back(target, "Vol0") if mode != "no cache" else None
        before = drives.flushes()
        data.write(count=20, flush=2, **dict(WRITING, depth=1))
        after = drives.flushes()
        for device, wanted in enumerate((fast, slow)):
            if wanted:
                assert after[device] >= before[device] + 8, (mode, before, after)
        data.verify()
    target.stop()
    drives.far.stop()


def test_a_bdev_that_only_says_that_it_passes_commands_on_is_named(start, folder):
    drives = Drives(folder, start)
    target = drives.near
    target.call("bdev_passthru_create", base_bdev_name="Driven1", name="Fast")
    target.call("bdev_split_create", base_bdev="Driven2", split_count=1)
    target.call("bdev_bcache_create", name="Vol0", cache_bdev="Fast", backing_bdev="Driven2p0", mode="writeback",
                limit=60)
    data = pattern.Pattern(folder, export.Iscsi("Vol0").start(target))
    data.write(count=50, flush=5, **WRITING)
    data.verify()
    log = target.log.read_text(errors="replace")
    assert re.search(r"Fast: .*volatile cache", log), log
    assert re.search(r"Driven2p0: .*volatile cache", log), log
    target.stop()
    drives.far.stop()


def test_bdevs_that_cannot_bear_a_superblock_are_refused_with_the_reason(start, folder):
    target = start(memory_mb=512)
    volume.malloc(target, "Fast", 64)
    volume.malloc(target, "Zones", 64, block_size=4096)
    target.call("bdev_zone_block_create", name="Zoned", base_bdev="Zones", zone_capacity=4096, optimal_open_zones=1)
    try:
        target.call("bdev_null_create", name="Null520", num_blocks=65536, block_size=520, md_size=8)
        unfit = {"Zoned": "zoned", "Null520": "blocks of 520 bytes"}
    except RpcError:
        # newer releases want the size of the data alone, and have metadata in memory too
        target.call("bdev_null_create", name="Null520", num_blocks=65536, block_size=512, md_size=8)
        target.call("bdev_malloc_create", name="Beside", num_blocks=65536, block_size=512, md_size=8,
                    md_interleave=False)
        unfit = {"Zoned": "zoned", "Null520": "blocks of 520 bytes", "Beside": "8 bytes of metadata"}
    for bdev, reason in unfit.items():
        for words in ({"cache_bdev": bdev, "backing_bdev": "Fast"}, {"cache_bdev": "Fast", "backing_bdev": bdev}):
            with pytest.raises(RpcError, match=reason):
                target.call("bdev_bcache_create", name="Vol0", limit=60, **words)
        with pytest.raises(RpcError, match=reason):
            target.call("bdev_bcache_register", bdev_name=bdev, limit=60)
    assert volume.volumes(target) == {} and target.call("bdev_bcache_get_sets") == []
    target.stop()


def test_a_snapshot_is_not_started_in_place_of_the_live_device(start, folder):
    def add_bdevs():
        volume.aio(target, "pool", folder / "pool.img")
        volume.aio(target, "cache", folder / "cache.img")

    target = start(memory_mb=512)
    images.sparse(folder / "pool.img", 256 * images.MIB)
    images.sparse(folder / "cache.img", 48 * images.MIB)
    add_bdevs()
    target.call("bdev_lvol_create_lvstore", bdev_name="pool", lvs_name="store", limit=60)
    lvol(target, "create", lvs_name="store", lvol_name="live", size_mb=96)
    target.call("bdev_bcache_create", limit=60, name="Vol0", cache_bdev="cache", backing_bdev="store/live",
                mode="writeback")
    exported = export.Iscsi("Vol0")
    data = pattern.Pattern(folder, exported.start(target))
    data.write(count=200, flush=20, **WRITING)
    data.verify()
    target.call("bdev_lvol_snapshot", lvol_name="store/live", snapshot_name="old", limit=60)
    data.write(count=200, flush=20, **WRITING)
    target.restart(kill=True)
    add_bdevs()
    entry = volume.wait_volume(target, "Vol0")
    live = target.call("bdev_get_bdevs", name="store/live")[0]
    assert entry["backing_bdev"] in (live["name"], "store/live"), entry
    exported.start(target)
    data.verify()
    old = target.call("bdev_get_bdevs", name="store/old")[0]["name"]
    assert re.search(r"%s .*not started: .*takes no writes" % re.escape(old), target.log.read_text(errors="replace"))
    for words in ({"cache_bdev": "cache", "backing_bdev": "store/old"}, {"cache_bdev": "store/old", "backing_bdev": "x"}):
        with pytest.raises(RpcError):
            target.call("bdev_bcache_create", name="Vol1", limit=60, **words)
    with pytest.raises(RpcError, match="takes no writes"):
        target.call("bdev_bcache_register", bdev_name=old, limit=60)
    volume.write_back(target, "Vol0")
    data.verify()
    target.stop()


def test_a_discard_of_more_than_2_to_the_32_sectors_covers_all_of_them(start, folder):
    """A count of sectors that is cut to 32 bits would cover the beginning alone."""
    blocks = (5 << 40) // 2 // 4096
    target = start(memory_mb=640)
    volume.aio(target, "pool", images.sparse(folder / "pool.img", 16384 * images.MIB), 4096)
    volume.aio(target, "cache", images.sparse(folder / "cache.img", 64 * images.MIB), 4096)
    # few clusters: SPDK 20.07 goes through them by recursion
    target.call("bdev_lvol_create_lvstore", bdev_name="pool", lvs_name="store", cluster_sz=1 << 30, clear_method="none",
                limit=60)
    lvol(target, "create", lvs_name="store", lvol_name="big", size_mb=blocks // 256 + 8, thin_provision=True)
    target.call("bdev_bcache_create", limit=60, name="Vol0", cache_bdev="cache", backing_bdev="store/big",
                mode="writethrough", block_size=4096)
    exported = export.NvmeTcp("Vol0")
    # newer releases cut discards to a length of their own unless told not to
    is_new = target.call("spdk_get_version")["fields"]["major"] >= 23
    exported.start(target, **({"max_discard_size_kib": 0} if is_new else {}))
    host = nvme.Initiator(exported.port, exported.nqn)
    places = (5, (1 << 29) - 1, 1 << 29, blocks - 3)
    for at in places:
        host.write(at, 1, b"x" * 4096).ok()
        assert bytes(host.read(at, 1, 4096).ok().data) == b"x" * 4096
    assert volume.the_set(target)["cached_extents"] == len(places)
    # what is on the device afterwards is the device's affair; what is cached is forgotten
    host.deallocate([(0, blocks - 1)]).ok()
    assert volume.the_set(target)["cached_extents"] == 0
    host.close()
    target.stop()
