"""Two hosts with a volume each on one cache set: nothing that one of them sends reaches the other's data or ends its
service."""

import pytest

from kit import export, images, nvme, tools, volume

BLOCKS = 8          # of 512 bytes: what each I/O is about
BYTES = BLOCKS * 512
LONG = 128 << 10    # the longest memory that SPDK's NVMe/TCP target takes by default
STEP = 32           # blocks from one I/O to the next
COUNT = 60
SECRET = (b"the other's secret. " * BYTES)[:BYTES]
OWN = (b"my own data. " * BYTES)[:BYTES]


class Tenants:
    """Two volumes, each exported by itself to a host of its own; `a` is hostile, `b` keeps a secret."""

    def __init__(self, folder, target, kind, mode):
        self.target = target
        self.cache = images.sparse(folder / "fast.img", 64 * images.MIB)
        self.backing = [images.sparse(folder / ("slow%d.img" % i), 64 * images.MIB) for i in range(2)]
        if kind == "aio":
            volume.aio(target, "fast", self.cache)
        else:
            volume.malloc(target, "fast", 64)
        self.hosts = []
        for i in range(2):
            volume.aio(target, "slow%d" % i, self.backing[i])
            target.call("bdev_bcache_create", name="Vol%d" % i, cache_bdev="fast", backing_bdev="slow%d" % i,
                        mode="writeback", limit=60)
            target.call("bdev_bcache_set_options", name="Vol%d" % i, writeback_running=False)
            exported = export.NvmeTcp("Vol%d" % i, name="host%d" % i)
            exported.start(target, transport=i == 0)
            self.hosts.append(nvme.Initiator(exported.port, exported.nqn))
        self.a, self.b = self.hosts
        for i in range(COUNT):
            # neighbours on the cache device: each of the one beside each of the other
            self.a.write(i * STEP, BLOCKS, OWN).ok()
            self.b.write(i * STEP, BLOCKS, SECRET).ok()
        target.call("bdev_bcache_set_cache_mode", name="Vol0", mode=mode)

    def unharmed(self):
        """The other's data are what they were, and no device is blamed for anything."""
        for i in range(COUNT):
            assert bytes(self.b.read(i * STEP, BLOCKS, BYTES).ok().data) == SECRET, i
        found = volume.the_set(self.target)
        assert found["state"] == "running", found
        assert all(count == 0 for count in found["io_errors"].values()), found
        for entry in volume.volumes(self.target).values():
            assert entry["io_errors"] == 0, entry
        self.b.write(20000, BLOCKS, SECRET).ok()
        self.b.flush().ok()

    def end(self):
        """The other's data and the set's own are whole on the devices too."""
        for host in self.hosts:
            host.close()
        self.target.stop()


@pytest.mark.parametrize("kind", ["aio", "malloc"])
@pytest.mark.parametrize("mode", ["writeback", "none"])
def test_memory_longer_than_the_command_reaches_nobody_else(start, folder, kind, mode):
    both = Tenants(folder, start(memory_mb=512), kind, mode)
    for i in range(COUNT):
        # dirty data in the cache, and blocks that are not cached
        for block, expected in ((i * STEP, OWN), (30000 + i * STEP, bytes(BYTES))):
            data = bytes(both.a.read(block, BLOCKS, LONG).ok().data)
            assert data[:BYTES] == expected, block
            assert b"secret" not in data, block
    for i in range(COUNT):
        long = bytes([i + 1]) * LONG
        for block in (i * STEP, 60000 + i * STEP):
            both.a.write(block, BLOCKS, long).ok()
            assert bytes(both.a.read(block, BLOCKS, BYTES).ok().data) == long[:BYTES], block
            after = bytes(both.a.read(block + BLOCKS, BLOCKS, BYTES).ok().data)
            assert after == bytes(BYTES), block
    both.unharmed()
    both.end()
    if kind == "aio":
        tools.run(tools.built("bcachectl"), "check", both.cache, *both.backing)


def test_memory_that_is_too_short_and_ranges_beyond_the_end_fail_alone(start, folder):
    both = Tenants(folder, start(memory_mb=512), "aio", "writeback")
    size = 64 * 2048
    for i in range(COUNT):
        for block, blocks in ((size - 20, 8), (size, 1), (1 << 63, 8), ((1 << 64) - 1, 8)):
            assert both.a.write(block, blocks, bytes(LONG)).wait().status, block
            assert both.a.read(block, blocks, LONG).wait().status, block
            assert both.a.zeroes(block, blocks).wait().status, block
        assert both.a.deallocate([(0, (1 << 32) - 1)]).wait().status
        assert both.a.deallocate([((1 << 64) - 8, 16)]).wait().status
        # memory that is too short
        assert both.a.write(i * STEP, BLOCKS, bytes(512)).wait().status
        assert both.a.read(i * STEP, BLOCKS, 512).wait().status
    both.unharmed()
    both.end()


@pytest.mark.parametrize("block_size", [512, 4096])
def test_memory_in_pieces_that_are_no_whole_blocks(start, folder, block_size):
    """The transport hands over pieces of 1000 bytes, each at an address that devices like."""
    target = start(memory_mb=512)
    pair = volume.Pair(folder, cache_mb=48, backing_mb=96, block_size=block_size)
    pair.create(target, mode="writeback")
    target.call("nvmf_create_transport", trtype="TCP", max_io_size=8192, io_unit_size=1000)
    exported = export.NvmeTcp("Vol0")
    exported.start(target, transport=False)
    host = nvme.Initiator(exported.port, exported.nqn)
    blocks = 8192 // block_size
    for mode in ("writeback", "writethrough", "none"):
        target.call("bdev_bcache_set_cache_mode", name="Vol0", mode=mode)
        for i in range(0, 64, 2):
            data = bytes((i * 7 + k) % 251 for k in range(8192))
            host.write(i * blocks, blocks, data).ok()
            assert bytes(host.read(i * blocks, blocks, 8192).ok().data) == data
            assert bytes(host.read((i + 1) * blocks, blocks, 8192).ok().data) == bytes(8192)
    host.close()
    found = volume.the_set(target)
    assert found["state"] == "running" and not any(found["io_errors"].values()), found
    assert volume.volume(target, "Vol0")["io_errors"] == 0
    target.stop()
