#!/usr/bin/env python3
"""The demo: a cached volume on two files, filled, read cold and warm, killed in the middle of writing, and checked.

Starts bcache_tgt in a temporary folder, makes the volume over JSON-RPC, does real I/O over iSCSI on the loopback, ends
the target with SIGKILL while it writes, starts it again, and compares every sector with what a flush had acknowledged.
Prints a table and exits with 0 when all was right. Leaves nothing behind.
"""

import argparse
import pathlib
import shutil
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from kit import export, images, pattern, target, volume  # noqa: E402  (the path comes first)

CACHE_MB = 256
BACKING_MB = 1024
REGION_MB = 96  # what is read twice; it fits in the cache
WRITE_SECONDS = 4
SECTORS_A_MB = images.MIB // images.SECTOR


class Demo:
    """The steps, each of which says what it does."""

    def __init__(self, folder):
        self.folder = folder
        self.began = time.monotonic()
        self.number = 0
        self.target = target.Target(folder, name="demo", memory_mb=1024)
        self.pair = volume.Pair(folder, "Demo0", cache_mb=CACHE_MB, backing_mb=BACKING_MB)
        self.export = export.Iscsi(self.pair.name)
        self.data = pattern.Pattern(folder, self.export.url)
        self.rows = []

    def say(self, text):
        """A line of progress."""
        self.number += 1
        print("[%5.1f s] %d. %s" % (time.monotonic() - self.began, self.number, text), flush=True)

    def entry(self):
        """The volume as the RPCs show it."""
        return volume.volume(self.target, self.pair.name)

    def create(self):
        self.say("starting bcache_tgt; files in %s" % self.folder)
        self.target.start()
        self.say("creating a volume: %d MiB of cache over a backing device of %d MiB" % (CACHE_MB, BACKING_MB))
        self.pair.create(self.target, mode="writearound")
        self.export.start(self.target)

    def fill(self):
        self.say("writing %d MiB around the cache, over iSCSI" % REGION_MB)
        self.data.write(count=REGION_MB * 4, align=512, min=512, max=512, span=REGION_MB * SECTORS_A_MB, depth=16)
        self.data.verify(size=2048)

    def read_pass(self, name):
        """Every 4 KiB of the region once, in scattered order, each checked."""
        self.say("reading all of it in blocks of 4 KiB: the %s pass" % name)
        self.target.call("bdev_bcache_reset_stats", name=self.pair.name)
        numbers = self.data.read(sweep=1, min=8, span=REGION_MB * SECTORS_A_MB, depth=64)
        stats = self.target.call("bdev_bcache_get_stats", name=self.pair.name)["total"]
        self.rows.append((name + " read", numbers["iops"], stats["cache_hits"], stats["cache_misses"],
                          self.entry()["dirty_bytes"]))

    def write_and_kill(self):
        self.target.call("bdev_bcache_set_cache_mode", name=self.pair.name, mode="writeback")
        self.say("writing in writeback mode, a flush every 32 writes; SIGKILL after %d s" % WRITE_SECONDS)
        self.target.call("bdev_bcache_reset_stats", name=self.pair.name)
        writing = self.data.begin(count=1000000, align=8, max=128, span=REGION_MB * SECTORS_A_MB, depth=32, flush=32,
                                  reads=20)
        time.sleep(WRITE_SECONDS)
        stats = self.target.call("bdev_bcache_get_stats", name=self.pair.name)["total"]
        dirty = self.entry()["dirty_bytes"]
        self.target.kill()
        writing.wait(expect=(pattern.EXIT_LOST,), limit=30)
        durable = int(writing.log.read_text().rsplit("@flush ", 1)[1].split("\n")[0])
        self.rows.append(("write until killed", durable / WRITE_SECONDS, stats["cache_hits"], stats["cache_misses"],
                          dirty))
        return durable, writing.flushed()

    def reopen(self):
        began = time.monotonic()
        self.target.start()
        entry = self.pair.reopen(self.target)
        took = time.monotonic() - began
        self.export.start(self.target)
        self.say("started again: the volume was back %.1f s later, %s, %.1f MiB dirty" %
                 (took, entry["state"], entry["dirty_bytes"] / images.MIB))

    def check(self):
        return self.data.verify(size=2048)

    def table(self):
        """What was measured."""
        print("\n%-20s %10s %10s %10s %12s" % ("", "IOPS", "hits", "misses", "dirty MiB"))
        for name, iops, hits, misses, dirty in self.rows:
            print("%-20s %10.0f %10d %10d %12.1f" % (name, iops, hits, misses, dirty / images.MIB))

    def run(self):
        """All steps; True when every byte was right."""
        self.create()
        self.fill()
        self.read_pass("cold")
        self.read_pass("warm")
        durable, flushes = self.write_and_kill()
        self.reopen()
        self.say("verifying every sector against %d writes that %d flushes had acknowledged" % (durable, flushes))
        numbers = self.check()
        self.say("writing the dirty data back and stopping in good order")
        volume.write_back(self.target, self.pair.name)
        self.check()
        self.target.stop()
        self.table()
        print("\n%d sectors verified, %d of them newer than the last flush, %d wrong" %
              (numbers["sectors"], numbers["newer"], numbers["bad"]))
        return numbers["bad"] == 0 and numbers["errors"] == 0


def main():
    """Runs the demo and cleans up whatever happens."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # a polite end from outside must clean up, too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = target.scratch_folder()
    demo = None
    try:
        demo = Demo(folder)
        right = demo.run()
    except Exception as error:
        print("\nthe demo failed: %s" % error, file=sys.stderr)
        if demo is not None:
            print("\nthe target's log ends with:\n%s" % demo.target.log_end(), file=sys.stderr)
        right = False
    finally:
        if demo is not None:
            demo.target.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print("demo: %s" % ("everything that a flush had acknowledged was there" if right else "FAILED"))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
