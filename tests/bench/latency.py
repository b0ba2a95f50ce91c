#!/usr/bin/env python3
"""How long host I/O takes while the engine is at work in the background, beside an engine that has nothing to do.

bdevperf, 4 KiB, 32 requests in flight, one core, malloc bdevs; the bdev layer's own histogram of the volume. On a
machine that does nothing else: a process that loses its core for a moment is the worst request there is. Prints a table,
and the numbers as JSON at the end or into --json FILE.
"""

import argparse
import base64
import json
import pathlib
import shutil
import struct
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kit import images, perf, target  # noqa: E402  (the path comes first)
from kit.rpc import RpcClient  # noqa: E402

BLOCK = 4096
SHARES = {"median": 0.5, "99 %": 0.99, "99.99 %": 0.9999, "worst": 1.0}
# name: (MiB of cache, MiB of volume, bdevperf's workload, a first run to warm up, passes of gc beside it)
SITUATIONS = {
    "read hits, idle engine": (256, 128, "randread", True, False),
    "read hits, gc pass after pass": (256, 128, "randread", True, True),
    "read misses, fill, eviction": (128, 384, "randread", False, False),
    "write-back, journal wraps": (256, 128, "randwrite", True, False),
    "write-back, gc pass after pass": (256, 128, "randwrite", True, True),
    "write-back, eviction, dirty data leave": (128, 384, "randwrite", True, False),
}


def config(cache_mb, volume_mb):
    """A volume on two malloc bdevs."""
    def malloc(name, size_mb):
        return "bdev_malloc_create", {"name": name, "num_blocks": size_mb * images.MIB // BLOCK, "block_size": BLOCK}
    return perf.bdev_config(
        malloc("Fast0", cache_mb), malloc("Back0", volume_mb),
        ("bdev_bcache_create", {"name": "Vol0", "cache_bdev": "Fast0", "backing_bdev": "Back0", "mode": "writeback",
                                "bucket_size_kb": 128}))


def histogram(answer):
    """(upper bound in microseconds, requests) of each bucket, from what bdev_get_histogram says."""
    raw = base64.b64decode(answer["histogram"])
    shift = answer.get("bucket_shift", answer.get("granularity"))
    per_range = 1 << shift
    found = []
    for i, (count,) in enumerate(struct.iter_unpack("<Q", raw)):
        order, index = divmod(i, per_range)
        ticks = index + 1 if order == 0 else (1 << (order + shift - 1)) + ((index + 1) << (order - 1))
        if count:
            found.append((ticks * 1e6 / answer["tsc_rate"], count))
    return found


def percentile(buckets, share):
    """The latency that this share of the requests did not exceed, in microseconds."""
    total, so_far = sum(count for _, count in buckets), 0
    for latency_us, count in buckets:
        so_far += count
        if so_far >= share * total:
            return latency_us
    return 0.0


def observe(socket, gc, done, found):
    """Takes the histogram again and again until `done` is set, for it goes with the run's channel; the last one that
    has anything stands in `found`. Between two of them: passes of gc, or nothing."""
    rpc = RpcClient(socket)
    uuid = rpc.call("bdev_bcache_get_sets")[0]["set"]
    while not done.wait(0 if gc else 0.1):
        if gc:
            rpc.call("bdev_bcache_gc", limit=60, set=uuid)
        buckets = histogram(rpc.call("bdev_get_histogram", name="Vol0"))
        if buckets:
            found[:] = buckets
    rpc.close()


def measure(folder, situation, options):
    """One situation: requests a second, and the latencies of SHARES."""
    cache_mb, volume_mb, kind, warm, gc = SITUATIONS[situation]
    arguments = perf.workload("Vol0", kind, options.seconds, depth=32, size=BLOCK)
    with perf.Session(folder, config(cache_mb, volume_mb), arguments, cpumask="0x1", memory_mb=1024,
                      program=options.bdevperf) as session:
        if warm:
            session.measure(limit=options.seconds + 60)
        done, buckets = threading.Event(), []
        observer = threading.Thread(target=observe, args=(session.target.socket, gc, done, buckets))
        session.target.call("bdev_enable_histogram", name="Vol0", enable=True)
        observer.start()
        iops = session.measure(limit=options.seconds + 60)
        done.set()
        observer.join()
    return dict({"iops": iops}, **{name: percentile(buckets, share) for name, share in SHARES.items()})


def main():
    """Measures all situations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of each run (default: 5)")
    parser.add_argument("--json", type=pathlib.Path, help="write the numbers there instead of printing them")
    parser.add_argument("--bdevperf", type=pathlib.Path, help="the binary (default: target/release/bdevperf)")
    options = parser.parse_args()
    print("bdevperf, 4 KiB, queue depth 32, one core, malloc bdevs, %d s each; microseconds\n" % options.seconds)
    print("%-40s %12s" % ("", "requests/s") + "".join("%10s" % name for name in SHARES), flush=True)
    results = {}
    for situation in SITUATIONS:
        folder = target.scratch_folder()
        try:
            result = results[situation] = measure(folder, situation, options)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print("%-40s %12.0f" % (situation, result["iops"]) + "".join("%10.0f" % result[name] for name in SHARES),
              flush=True)
    text = json.dumps(results, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
