"""Cache sets seen through a target's RPCs."""

import time

from . import images
from .rpc import RpcError


def aio(target, name, path, block_size=512):
    """A bdev on a file. Bdevs made by RPC are gone after a restart: call it again then."""
    target.call("bdev_aio_create", name=name, filename=str(path), block_size=block_size)
    return name


def malloc(target, name, size_mb, block_size=512):
    """A bdev in memory."""
    target.call("bdev_malloc_create", name=name, num_blocks=size_mb * images.MIB // block_size, block_size=block_size)
    return name


class Pair:
    """A cache image and a backing image, one volume over them, in a folder of the test's."""

    def __init__(self, folder, name="Vol0", cache_mb=64, backing_mb=128, block_size=512, tag=""):
        self.name = name
        self.block_size = block_size
        self.cache_bdev = "cache%s" % tag
        self.backing_bdev = "back%s" % tag
        self.cache = images.sparse(folder / ("%s.img" % self.cache_bdev), cache_mb * images.MIB)
        self.backing = images.sparse(folder / ("%s.img" % self.backing_bdev), backing_mb * images.MIB)

    def add_bdevs(self, target):
        """The two AIO bdevs; what examine finds on them comes up by itself."""
        aio(target, self.cache_bdev, self.cache, self.block_size)
        aio(target, self.backing_bdev, self.backing, self.block_size)

    def create(self, target, **options):
        """Bdevs and volume; returns what create answered."""
        self.add_bdevs(target)
        return target.call("bdev_bcache_create", limit=60, name=self.name, cache_bdev=self.cache_bdev,
                           backing_bdev=self.backing_bdev, **options)

    def reopen(self, target):
        """After a restart: the bdevs again, and the volume that examine brings up."""
        self.add_bdevs(target)
        return wait_volume(target, self.name)


def lvol(target, what, size_mb, **words):
    """Creates or resizes a logical volume; newer releases of SPDK want the size in MiB."""
    method = "bdev_lvol_" + what
    try:
        target.call(method, limit=60, size_in_mib=size_mb, **words)
    except RpcError as error:
        if "decode" not in error.message:
            raise
        target.call(method, limit=60, size=size_mb * images.MIB, **words)


def volumes(target):
    """All volumes by name."""
    return {entry["name"]: entry for entry in target.call("bdev_bcache_get_bdevs")}


def volume(target, name):
    """What get_bdevs says of one volume."""
    (entry,) = target.call("bdev_bcache_get_bdevs", name=name)
    return entry


def the_set(target, uuid=None):
    """What get_sets says of one set, or of the only one."""
    (entry,) = target.call("bdev_bcache_get_sets", **({"set": uuid} if uuid else {}))
    return entry


def wait_until(what, condition, limit=60, step=0.05):
    """Waits until `condition()` is true and returns its value; `what` names it in the error."""
    deadline = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError("after %d s there is still not: %s" % (limit, what))
        time.sleep(step)


def wait_volume(target, name, limit=30):
    """Waits until a volume is up and running."""
    def up():
        entry = volumes(target).get(name)
        return entry if entry and entry["running"] else None
    return wait_until("the volume %s running" % name, up, limit)


def write_back(target, name, limit=120):
    """Writes all dirty data of a volume back and waits for it."""
    target.call("bdev_bcache_flush_start", name=name)

    def finished():
        status = target.call("bdev_bcache_flush_status", name=name)
        return not status["in_progress"] and status
    status = wait_until("the end of the write-back of %s" % name, finished, limit)
    assert status["dirty_bytes"] == 0, status
