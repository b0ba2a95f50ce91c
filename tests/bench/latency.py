"""How long host I/O takes while the engine is at work in the background, beside an engine that has nothing to do.

bdevperf, 4 KiB, 32 requests in flight, one core, malloc bdevs; the bdev layer's own histogram of the volume. On a
machine that does nothing else: a process that loses its core for a moment is the worst request there is.
"""

import matrix
import runner

DEPTH = 32
# name: (MiB of cache, MiB of volume, bdevperf's workload, a first run to warm up, passes of gc beside it)
SITUATIONS = {
    "read hits, idle engine": (256, 128, "randread", True, False),
    "read hits, gc pass after pass": (256, 128, "randread", True, True),
    "read misses, fill, eviction": (128, 384, "randread", False, False),
    "write-back, journal wraps": (256, 128, "randwrite", True, False),
    "write-back, gc pass after pass": (256, 128, "randwrite", True, True),
    "write-back, eviction, dirty data leave": (128, 384, "randwrite", True, False),
}
# the one that the others are compared with
IDLE = "read hits, idle engine"


def measure(situation, options):
    """One situation: requests a second, and the latencies of runner.SHARES in microseconds; or {"error": why}."""
    cache, size, kind, warm, gc = SITUATIONS[situation]
    cores = runner.chosen_cores(options.cpumask, 1)
    config = [matrix.malloc("Fast0", cache), matrix.malloc("Back0", size), matrix.volume(bucket_size_kb=128)]
    live = runner.Live("Over0", config, {"kind": kind, "depth": DEPTH, "size": matrix.BLOCK}, options, cores,
                       runner.HUGE_MB + cache + size)
    try:
        live.start()
        if warm:
            live.session.rate(options.warm_seconds)
        return live.latencies(options.latency_seconds, live.call("bdev_bcache_get_sets")[0]["set"] if gc else None)
    except (runner.Wrong, *runner.FAILURES) as error:
        return {"error": str(error)}
    finally:
        live.close()
