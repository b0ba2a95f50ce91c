"""Linux's own bcache reads every sector of sets that random lives of this engine left: many sets, one boot.

Each life writes long extents, is stopped in good order so that they stand in the btree, then makes small changes in the
middle of them, and is stopped in good order or killed. LINUX_SEED=N draws other lives, LINUX_SUITES=bookworm,trixie has
the kernels of these Debian releases judge instead of the machine's own.
"""

import json
import os
import random

import pytest

from kit import export, guest, images, pattern, superblock, tools, volume

SEED = int(os.environ.get("LINUX_SEED", "1"))
SUITES = [suite or None for suite in os.environ.get("LINUX_SUITES", "").split(",")]
# (bucket in KiB, block in bytes): from the smallest that Linux works with to the largest that a superblock can say
GEOMETRIES = [(8, 512), (8, 4096), (32, 512), (64, 512), (512, 4096), (16384, 512)]
KILLED = [(16, 512), (4096, 4096)]
BACKING_MB = 16
MODES = ["writeback", "writeback", "writethrough"]

JUDGE = """
for n in %(numbers)s; do
    set -- $(sed -n "$((n + 1))p" /sets)
    echo /dev/$1 > /sys/fs/bcache/register; echo /dev/$2 > /sys/fs/bcache/register
    t=0; while [ ! -e /sys/block/$1/bcache/dev ] && [ $t -lt 300 ]; do sleep 0.1; t=$((t + 1)); done
    v=/dev/$(basename $(readlink /sys/block/$1/bcache/dev))
    t=0; while [ ! -b $v ] && [ $t -lt 100 ]; do sleep 0.1; t=$((t + 1)); done
    echo "@set $n $(cat /sys/block/$1/bcache/state) depth $(cat /sys/block/$2/bcache/set/tree_depth)"
    log=; [ -s /log$n ] && log=log=/log$n
    blkio verify $v state=/state$n $log
done
dmesg | grep -iwE 'bcache: .*(errors?|bad|corrupt(ed)?|invalid|unsupported|missing|fail(s|ed)?)' | grep -v 'stale dirty pointer' |
    sed 's/^/@trouble /'
dmesg | grep -E 'WARNING: CPU|BUG: |Oops|blocked for more' | sed 's/^/@trouble /'
dmesg | grep -E 'bcache: .*stale dirty pointer' | sed 's/^/@stale /'
dmesg | grep -E 'journal replay done' | sed 's/^/@replay /'
"""


class Life:
    """One set, its volume, and what the volume holds."""

    def __init__(self, folder, number, geometry, rng):
        self.number = number
        self.bucket_kb, self.block = geometry
        self.rng = rng
        self.mode = rng.choice(MODES)
        cache_mb = max(24, 1100 * self.bucket_kb // 1024 + 1)
        self.pair = volume.Pair(folder, "Life%d" % number, cache_mb, BACKING_MB, tag=str(number))
        self.data = None
        self.exported = None

    def text(self):
        """Its parameters, for messages."""
        return "set %d: buckets of %d KiB, blocks of %d, %s" % (self.number, self.bucket_kb, self.block, self.mode)

    def show(self, target, folder):
        """Keeps dirty data where they are, and exports the volume."""
        target.call("bdev_bcache_set_options", name=self.pair.name, writeback_running=False)
        self.exported = self.exported or export.Iscsi(self.pair.name)
        url = self.exported.start(target, tag=self.number + 1)
        self.data = self.data or pattern.Pattern(folder, url, name=self.pair.name)

    def begin(self, target, folder):
        """The first life: long extents."""
        self.pair.create(target, mode=self.mode, bucket_size_kb=self.bucket_kb, block_size=self.block)
        self.show(target, folder)
        self.data.write(**self.long())

    def go_on(self, target, folder):
        """The second: it holds what the first wrote."""
        self.pair.reopen(target)
        self.show(target, folder)
        self.data.verify()

    def long(self):
        """What the first life writes."""
        sectors = self.block // images.SECTOR
        return {"count": self.rng.randrange(80, 160), "align": sectors, "min": 32,
                "max": self.rng.choice([64, 128, 256])}

    def small(self):
        """What the second writes: small changes. Past the cache they are deletions, too."""
        sectors = self.block // images.SECTOR
        return {"count": self.rng.randrange(300, 600), "align": sectors, "min": sectors,
                "max": sectors * self.rng.choice([1, 1, 2]), "flush": 40}


class BrimLife(Life):
    """One whose root is a leaf that nearly fills its node, so that it splits when Linux replays a journal."""

    def __init__(self, folder, number, rng):
        super().__init__(folder, number, (16, 512), rng)
        self.mode = "writeback"

    def long(self):
        return {"count": 420, "align": 16, "min": 16, "max": 16}

    def small(self):
        return {"count": 260, "align": 16, "min": 16, "max": 16}

    def fill_journal(self):
        """As far as a writer may, with keys that say what the leaf says."""
        rows = json.loads(tools.run(tools.built("bcachectl"), "dump", "keys", "--json", self.pair.cache))
        node_keys = self.bucket_kb * 1024 // 24
        assert node_keys * 8 // 10 < len(rows) < node_keys, len(rows)
        assert superblock.fill_journal(self.pair.cache, rows) > node_keys


def live(start, folder, lives, kill):
    """Two lives of some sets in one target, the second of which is stopped in good order or killed."""
    target = start()
    for life in lives:
        life.begin(target, folder)
    target.restart()
    for life in lives:
        life.go_on(target, folder)
    if not kill:
        for life in lives:
            life.data.write(**life.small())
        target.stop()
        return
    running = [life.data.begin(**dict(life.small(), count=200000)) for life in lives]
    for one in running:
        volume.wait_until("8 flushes", lambda one=one: one.flushed() >= 8, limit=60, step=0.01)
    target.kill()
    for one in running:
        one.wait(expect=(pattern.EXIT_LOST,), limit=30)


def judged(folder, lives, suite):
    """Linux opens copies of all of the sets; returns its console."""
    drives, files, table = [], {}, ""
    for life in lives:
        for kind, path in (("back", life.pair.backing), ("cache", life.pair.cache)):
            drives.append(images.copy(path, folder / ("judge-%s%d.img" % (kind, life.number))))
        names = ["vd" + chr(ord("a") + len(drives) - 2 + k) for k in range(2)]
        table += "%s %s\n" % tuple(names)
        files["state%d" % life.number] = life.data.state
        if life.data.log:
            files["log%d" % life.number] = life.data.log
    (folder / "sets").write_text(table)
    files["sets"] = folder / "sets"
    script = JUDGE % {"numbers": " ".join(str(life.number) for life in lives)}
    return guest.run(folder, script, images=drives, files=files, limit=420, suite=suite, memory_mb=1024)


@pytest.mark.limit(900)
@pytest.mark.parametrize("suite", SUITES)
def test_linux_reads_every_sector_of_what_random_lives_left(start, folder, suite):
    rng = random.Random(SEED)
    lives = [Life(folder, number, geometry, rng) for number, geometry in enumerate(GEOMETRIES + KILLED)]
    brim = BrimLife(folder, len(lives), rng)
    stopped, killed = lives[:len(GEOMETRIES)] + [brim], lives[len(GEOMETRIES):]
    live(start, folder, stopped, kill=False)
    live(start, folder, killed, kill=True)
    for life in lives + [brim]:
        tools.run(tools.built("bcachectl"), "check", life.pair.cache, life.pair.backing)
    brim.fill_journal()
    console = judged(folder, lives + [brim], suite)
    assert "@trouble" not in console, console
    found = console.split("@set ")[1:]
    assert len(found) == len(lives) + 1, console
    for life, text in zip(lives + [brim], found):
        numbers = pattern.summary(text, "verify")
        assert numbers["bad"] == 0 and numbers["errors"] == 0 and numbers["written"] > 0, life.text() + console
    # Linux wrote its new root behind a journal at the brim
    assert " depth 1\n" in found[-1].replace("\r", ""), console
    assert "@replay" in console


@pytest.mark.limit(300)
def test_a_set_that_linux_misreads_is_mended_by_one_start(start, folder):
    golden = images.Golden("kernel-splits", folder)
    report = tools.run(tools.built("bcachectl"), "check", golden.cache, *golden.backing, expect=(1,))
    assert "Linux refuses or misreads" in report, report
    target = start()
    volume.aio(target, "c", golden.cache)
    volume.aio(target, "b", golden.backing[0])
    volume.wait_until("the volume", lambda: [v for v in volume.volumes(target).values() if v["running"]])
    target.stop()
    tools.run(tools.built("bcachectl"), "check", golden.cache, *golden.backing)
    script = """
    for d in /dev/vda /dev/vdb; do echo $d > /sys/fs/bcache/register; done
    t=0; while [ ! -b /dev/bcache0 ] && [ $t -lt 100 ]; do sleep 0.1; t=$((t + 1)); done
    blkio golden /dev/bcache0 /expect
    dmesg | grep -iwE 'bcache: .*(errors?|bad|corrupt(ed)?|invalid)' | sed 's/^/@trouble /'
    """
    console = guest.run(folder, script, images=[golden.backing[0], golden.cache],
                        files={"expect": golden.expect[0]}, limit=240)
    assert "@trouble" not in console and pattern.summary(console, "verify")["bad"] == 0, console
