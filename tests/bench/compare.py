#!/usr/bin/env python3
"""The same workload on raw malloc, SPDK's passthru, this cache and SPDK's OCF, side by side.

bdevperf, 4 KiB, 128 requests in flight, one core, everything in memory: what is measured is the processor time that a
layer costs a request. Random reads all hit (a first, unmeasured run of the same length fills the cache); random writes
go to a write-back cache that holds the whole volume. The bdevs run one after the other, so compare within one run only,
on a machine that does nothing else. Prints a table, and the numbers as JSON at the end or into --json FILE.
"""

import argparse
import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kit import images, perf, target  # noqa: E402  (the path comes first)
from kit.rpc import RpcError  # noqa: E402

CACHE_MB = 256
VOLUME_MB = 128
BLOCK = 4096


def malloc(name, size_mb):
    """A malloc bdev of 4 KiB blocks, as a configuration's entry."""
    return "bdev_malloc_create", {"name": name, "num_blocks": size_mb * images.MIB // BLOCK, "block_size": BLOCK}


RAW = [malloc("Back0", VOLUME_MB)]
BOTH = [malloc("Fast0", CACHE_MB), malloc("Back0", VOLUME_MB)]
# name: (bdev that is measured, configuration)
CANDIDATES = {
    "malloc": ("Back0", RAW),
    "passthru": ("Over0", RAW + [("bdev_passthru_create", {"name": "Over0", "base_bdev_name": "Back0"})]),
    "bcache": ("Over0", BOTH + [("bdev_bcache_create", {"name": "Over0", "cache_bdev": "Fast0",
                                                        "backing_bdev": "Back0", "mode": "writeback"})]),
    "ocf": ("Over0", BOTH + [("bdev_ocf_create", {"name": "Over0", "mode": "wb", "cache_bdev_name": "Fast0",
                                                  "core_bdev_name": "Back0"})]),
}
WORKLOADS = {"random read, hits": "randread", "random write, write-back": "randwrite"}


def measure(folder, candidate, kind, options):
    """One candidate under one workload: (requests a second, share of hits or None)."""
    bdev, config = CANDIDATES[candidate]
    seconds = options.seconds
    arguments = perf.workload(bdev, kind, seconds, depth=128, size=BLOCK)
    with perf.Session(folder, perf.bdev_config(*config), arguments, cpumask="0x1", memory_mb=1024,
                      program=options.bdevperf, in_place=options.in_place) as session:
        session.measure(limit=seconds + 30)
        if candidate == "bcache":
            session.target.call("bdev_bcache_reset_stats", name=bdev)
        iops = session.measure(limit=seconds + 30)
        if candidate != "bcache" or kind != "randread":
            return iops, None
        stats = session.target.call("bdev_bcache_get_stats", name=bdev)["total"]
        return iops, stats["cache_hits"] / max(1, stats["cache_hits"] + stats["cache_misses"])


def main():
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of each run (default: 5)")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), help="candidates to run")
    parser.add_argument("--json", type=pathlib.Path, help="write the numbers there instead of printing them")
    parser.add_argument("--bdevperf", type=pathlib.Path, help="the binary (default: target/release/bdevperf)")
    parser.add_argument("--in-place", action="store_true",
                        help="let bdevperf of 20.07 use malloc bdevs without copying, as it does by default")
    options = parser.parse_args()
    results = {}
    print("bdevperf, 4 KiB, queue depth 128, one core, malloc bdevs, %d s each" % options.seconds, flush=True)
    for label, kind in WORKLOADS.items():
        print("\n%-26s %14s %12s %8s" % (label, "requests/s", "of malloc", "hits"))
        for candidate in options.only:
            folder = target.scratch_folder()
            try:
                iops, hits = measure(folder, candidate, kind, options)
            except (perf.PerfFailed, target.TargetDied, RpcError) as error:
                print("%-26s failed: %s" % (candidate, error))
                return 1
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            results.setdefault(kind, {})[candidate] = {"iops": iops, "hits": hits}
            base = results[kind].get("malloc", {}).get("iops")
            print("%-26s %14.0f %12s %8s" % (candidate, iops, "%.0f %%" % (100 * iops / base) if base else "",
                                             "" if hits is None else "%.1f %%" % (100 * hits)), flush=True)
    text = json.dumps(results, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
