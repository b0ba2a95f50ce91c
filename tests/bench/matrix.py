"""What is measured: the candidates, the workloads, and the cells (a workload at a size, a depth and a number of cores).

All four candidates of a cell have backing devices of one kind and size. Ours is log-structured: a write takes new room
in the cache, so where write-back is not to be part of the picture its cache is twenty times the volume, and dirty data
stay below writeback_percent. OCF writes in place, so a cache that holds the volume is all it needs; one of 2.5 GiB
would take it half a minute to start and make it no faster.

OCF's sequential cut-off cannot be switched off from outside in SPDK 20.07: bdev_ocf has no RPC for it and keeps the
library's default, a threshold of 1024 bytes under the policy "only while the cache is full". A cache that holds the
volume never is, so nothing sequential is cut off in these cells; where the cache is full (misses, steady state) access
is random, and only a request that follows its predecessor by chance is concerned. bdev_ocf of newer releases behaves
the same unless told otherwise.
"""

import dataclasses

from kit import images

BLOCK = 4096
CANDIDATES = ("raw", "passthru", "ours", "OCF")
OCF_MODES = {"writeback": "wb", "writethrough": "wt"}
# SPDK 20.07's bdevperf verifies no more than that
VERIFY_BYTES_MAX = 65536


@dataclasses.dataclass(frozen=True)
class Workload:
    """What the host does, and what it does it to; sizes in MiB."""
    key: str
    title: str
    kind: str
    volume: int = 128
    cache: int = 256
    ocf_cache: int = 256
    mode: str = "writeback"
    read_percent: int = None
    hits: str = None  # "all" or "none": the share of hits that makes it this workload
    quiet: bool = False  # nothing may be written back
    verify: bool = False

    def tiny(self):
        """The same on small devices, to see that it works."""
        # newer releases of OCF have 38 MB of metadata whatever the size
        ocf, volume = 64, 8
        return dataclasses.replace(self, volume=64 if self.hits == "none" else volume,
                                   cache=200 if self.quiet else 32, ocf_cache=ocf, hits=None)


LARGE = {"cache": 2560, "quiet": True}
WORKLOADS = [
    Workload("hits", "random read, all hits", "randread", hits="all"),
    Workload("misses", "random read, misses with fill", "randread", volume=768, cache=48, ocf_cache=48, hits="none"),
    Workload("writeback", "random write, write-back", "randwrite", **LARGE),
    Workload("steady", "random write, write-back, eviction and write-back running", "randwrite", volume=512),
    Workload("seqwrite", "sequential write, write-back", "write", **LARGE),
    Workload("seqread", "sequential read, all hits", "read", hits="all"),
    Workload("mix", "70 % reads, 30 % writes, write-back", "randrw", read_percent=70, **LARGE),
    Workload("writethrough", "random write, writethrough", "randwrite", mode="writethrough"),
    Workload("verify", "bdevperf's verify, write-back", "verify", verify=True, **LARGE),
]
BY_KEY = {workload.key: workload for workload in WORKLOADS}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One workload at one point of the matrix."""
    workload: Workload
    size: int
    depth: int
    cores: int

    @property
    def key(self):
        return "%s %s" % (self.workload.key, self.point)

    @property
    def point(self):
        return "%s QD %d%s" % (size_name(self.size), self.depth, "" if self.cores == 1 else ", %d cores" % self.cores)


def size_name(size):
    """4096 as 4K."""
    return "%dM" % (size >> 20) if size >= 1 << 20 else "%dK" % (size >> 10)


def malloc(name, size_mb):
    """A malloc bdev of 4 KiB blocks, as a configuration's entry."""
    return "bdev_malloc_create", {"name": name, "num_blocks": size_mb * images.MIB // BLOCK, "block_size": BLOCK}


def volume(mode="writeback", **more):
    """Our volume Over0 on Fast0 and Back0, as a configuration's entry."""
    return "bdev_bcache_create", {"name": "Over0", "cache_bdev": "Fast0", "backing_bdev": "Back0", "mode": mode, **more}


def setup(candidate, work):
    """The bdev that is measured, and the configuration that makes it."""
    back = malloc("Back0", work.volume)
    if candidate == "raw":
        return "Back0", [back]
    if candidate == "passthru":
        return "Over0", [back, ("bdev_passthru_create", {"name": "Over0", "base_bdev_name": "Back0"})]
    if candidate == "ours":
        return "Over0", [malloc("Fast0", work.cache), back, volume(work.mode)]
    return "Over0", [malloc("Fast0", work.ocf_cache), back,
                     ("bdev_ocf_create", {"name": "Over0", "mode": OCF_MODES[work.mode], "cache_bdev_name": "Fast0",
                                          "core_bdev_name": "Back0"})]


def huge_mb(candidate, cell):
    """MiB of huge pages that a process of this cell takes, about."""
    work = cell.workload
    cache = {"ours": work.cache, "OCF": work.ocf_cache}.get(candidate, 0)
    # OCF 20.07 fails to start with less, and says nothing of memory
    base = {"OCF": 896}.get(candidate, 320)
    return base + cache + work.volume + 2 * cell.cores * cell.depth * cell.size // images.MIB


KIB4, KIB64, MIB1 = 4096, 65536, 1 << 20
# (size, depth, cores): the depths at 4 KiB, the sizes, and a second core
STAR = [(KIB4, 1, 1), (KIB4, 32, 1), (KIB4, 128, 1), (KIB64, 128, 1), (MIB1, 32, 1), (KIB4, 128, 2)]
EVERY = [(size, depth, cores) for cores in (1, 2) for size in (KIB4, KIB64, MIB1) for depth in (1, 32, 128)]
# what the figures to reach are about
QUICK = {
    "hits": [(KIB4, 1, 1), (KIB4, 128, 1), (KIB4, 128, 2)],
    "misses": [(KIB4, 128, 1)],
    "writeback": [(KIB4, 128, 1), (KIB4, 128, 2)],
    "steady": [(KIB4, 128, 1)],
    "seqwrite": [(KIB64, 128, 1)],
    "seqread": [(KIB64, 128, 1)],
}
SMOKE = {"hits": [(KIB4, 1, 1)], "seqwrite": [(KIB64, 32, 1)]}


def cells(scope, only=None):
    """The cells of a scope: "star" (each dimension by itself), "every" (all combinations), "quick" or "smoke"."""
    points = {"star": dict.fromkeys(BY_KEY, STAR), "every": dict.fromkeys(BY_KEY, EVERY), "quick": QUICK,
              "smoke": SMOKE}[scope]
    found = []
    for work in WORKLOADS:
        for size, depth, cores in points.get(work.key, ()):
            if (only and work.key not in only) or (work.verify and size > VERIFY_BYTES_MAX):
                continue
            found.append(Cell(work.tiny() if scope == "smoke" else work, size, depth, cores))
    return found
