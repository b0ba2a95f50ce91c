"""How the number of cached extents shows: requests a second on hits, and memory, from 64 K extents on.

Null bdevs, for they have terabytes and cost nothing: what is left is the map. A volume of so many blocks of 4 KiB is
read at random until the reads hit: each miss makes an extent of one block, and neighbours are cached at unrelated
places, so that no two can be one. Then the same reads are measured. bdevperf, 4 KiB, 128 in flight, one core.
"""

import statistics
import time

from kit import images

import matrix
import runner

DEPTH = 128
CACHE_BYTES = 1 << 40
# bdevperf's random numbers leave some blocks of a large volume out for good: 13 % of 16 M, 45 % of 64 M. So a map is full
# when reads hit; the table has the true number.
FULL_HITS, FULL_SHARE = 0.995, 0.4
# A random read misses less and less often, so filling takes four reads a block; that many reads a second are a bad day.
READS_A_BLOCK, SLOWEST = 4.5, 100_000


def null(name, size):
    """A null bdev of 4 KiB blocks, as a configuration's entry."""
    return "bdev_null_create", {"name": name, "num_blocks": size // matrix.BLOCK, "block_size": matrix.BLOCK}


def resident_bytes(pid):
    """Memory of a process, huge pages too."""
    with open("/proc/%d/status" % pid, encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return sum(int(fields[name].split()[0]) for name in ("VmRSS", "HugetlbPages")) * 1024


def cached(live):
    """(extents in the map, its own account of its memory in bytes)."""
    found = live.call("bdev_bcache_get_sets")[0]
    return found["cached_extents"], found["index_bytes"]


def hits(live):
    """The share of reads that hit, since it was last reset."""
    stats = live.call("bdev_bcache_get_stats", name="Over0")["total"]
    return stats["cache_hits"] / max(1, stats["cache_hits"] + stats["cache_misses"])


def fill(live, extents, options, status):
    """Reads until reads hit."""
    deadline = time.monotonic() + 30 + extents * READS_A_BLOCK / SLOWEST
    while True:
        live.call("bdev_bcache_reset_stats", name="Over0")
        live.session.rate(min(2.0, options.seconds))
        have, _ = cached(live)
        status("%s extents: %.0f %% filled" % (count_name(extents), 100 * have / extents))
        if have >= FULL_SHARE * extents and hits(live) >= FULL_HITS:
            return
        if time.monotonic() > deadline:
            raise runner.Wrong("only %d of %d extents after a long time" % (have, extents))


def measure(extents, options, status):
    """Figures with so many extents in the cache, or {"error": why}."""
    cores = runner.chosen_cores(options.cpumask, 1)
    # the volume begins a superblock behind the start of its backing device
    size = extents * matrix.BLOCK + images.MIB
    config = [null("Fast0", max(CACHE_BYTES, 2 * size)), null("Back0", size), matrix.volume("writethrough")]
    live = runner.Live("Over0", config, {"kind": "randread", "depth": DEPTH, "size": matrix.BLOCK}, options, cores)
    try:
        live.start()
        pid = live.session.target.process.pid
        before = resident_bytes(pid) - cached(live)[1]
        fill(live, extents, options, status)
        live.call("bdev_bcache_reset_stats", name="Over0")
        for number in range(options.rounds):
            status("%s extents, round %d of %d" % (count_name(extents), number + 1, options.rounds))
            live.round()
        have, index_bytes = cached(live)
        return {"extents": have, "iops": statistics.median(live.iops), "low": min(live.iops), "high": max(live.iops),
                "rounds": live.iops, "index_bytes": index_bytes, "resident_bytes": resident_bytes(pid) - before,
                "hits": hits(live)}
    except (runner.Wrong, *runner.FAILURES) as error:
        return {"error": str(error)}
    finally:
        live.close()


def count_name(number):
    """65536 as 64 K."""
    for shift, unit in ((20, "M"), (10, "K")):
        if number >= 1 << shift:
            return "%d %s" % (number >> shift, unit)
    return str(number)
