"""Linux's own bcache as the judge: what we write it opens and reads right, what it writes we open and read right."""

import shutil

import pytest

from kit import export, guest, images, pattern, superblock, tools, volume

GOLDEN = ["clean-dirty", "crash-dirty", "power-cut", "overlaps-crash", "two-backing", "wrapped", "deep-tree",
          "flash-volume"]

# vda is the cache, the others are backing devices; the cache comes last, as it may in real life
REGISTER = """
for d in /dev/vd[b-z] /dev/vda; do [ -b $d ] && echo $d > /sys/fs/bcache/register; done
n=0; while [ ! -b /dev/bcache0 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
dmesg | grep -iwE 'bcache: .*(errors?|bad|corrupt(ed)?|invalid|unsupported|missing|fail(s|ed)?)' | grep -v 'stale dirty pointer' |
    sed 's/^/@trouble /'
dmesg | grep -E 'bcache: .*stale dirty pointer' | sed 's/^/@stale /'
[ -b /dev/bcache0 ] || { dmesg | tail -20; exit 1; }
echo "@state $(cat /sys/block/bcache0/bcache/state) $(cat /sys/block/bcache0/bcache/cache_mode)"
"""
STOP = """
for s in /sys/fs/bcache/*-*-*; do echo 1 > $s/stop; done
for b in /sys/block/bcache*/bcache/stop; do [ -e $b ] && echo 1 > $b; done
n=0; while [ -e /dev/bcache0 ] && [ $n -lt 200 ]; do sleep 0.1; n=$((n + 1)); done
sync
"""


def nothing_wrong(cache, *backings):
    """The offline check finds nothing on a set that nobody has open."""
    tools.run(tools.built("bcachectl"), "check", cache, *backings)


def kernel_judges(folder, pair, data, more="", killed=False):
    """Lets the kernel open copies' originals: it verifies every sector against state and log, then runs `more`.

    After a kill it may find stale dirty pointers in leaves: newer keys in the journal cover them, see
    docs/kernel-rules.md.
    """
    files = {}
    words = ""
    if data.state:
        files["state"] = data.state
        words += " state=/state"
    if data.log:
        files["log"] = data.log
        words += " log=/log"
    script = REGISTER + "blkio verify /dev/bcache0%s || exit 1\n%s%s" % (words, more, STOP)
    console = guest.run(folder, script, images=[pair.cache, pair.backing], files=files, limit=150)
    assert "@trouble" not in console, console
    assert killed or "@stale" not in console, console
    assert pattern.summary(console, "verify")["bad"] == 0
    return console


def written_by_us(folder, target, kill, **options):
    """A volume that our engine wrote, then stopped in good order or killed: (pair, its pattern)."""
    pair = volume.Pair(folder, cache_mb=48, backing_mb=64)
    pair.create(target, **options)
    exported = export.Iscsi(pair.name)
    data = pattern.Pattern(folder, exported.start(target))
    writing = {"align": 8, "max": 256, "depth": 32, "flush": 20, "reads": 20}
    data.write(count=1500, **writing)
    data.verify()
    if kill:
        running = data.begin(count=400000, **writing)
        volume.wait_until("20 flushes", lambda: running.flushed() >= 20, limit=60, step=0.01)
        target.kill()
        running.wait(expect=(pattern.EXIT_LOST,), limit=30)
    else:
        data.write(count=1000, **writing)
        target.stop()
    return pair, data, exported


@pytest.mark.limit(240)
@pytest.mark.parametrize("mode, kill", [("writeback", False), ("writeback", True), ("writethrough", True)])
def test_kernel_opens_what_we_wrote_and_we_what_it_wrote_on(start, folder, mode, kill):
    target = start()
    pair, data, exported = written_by_us(folder, target, kill, mode=mode, bucket_size_kb=32)
    nothing_wrong(pair.cache, pair.backing)
    # what the kernel finds is the state from here on: the same verify, on our side, takes it from copies
    shutil.copy(pair.cache, folder / "judge-cache.img")
    shutil.copy(pair.backing, folder / "judge-back.img")
    first = data.next_version
    more = ("echo '@again'\nblkio write /dev/bcache0 first=%d seed=77 count=800 align=8 max=128 flush=40 || exit 1\n"
            % first)
    console = kernel_judges(folder, pair, data, more, killed=kill)
    assert "@state" in console
    nothing_wrong(pair.cache, pair.backing)
    # our own engine, on the copies, must find a permitted content too; its finding is the base for the kernel's round
    target.start()
    volume.aio(target, pair.cache_bdev, folder / "judge-cache.img")
    volume.aio(target, pair.backing_bdev, folder / "judge-back.img")
    volume.wait_volume(target, pair.name)
    data.device = exported.start(target)
    data.verify()
    target.stop()
    # and the set as the kernel left it, with all that it wrote
    target.start()
    pair.reopen(target)
    data.device = exported.start(target)
    data.adopt_log(guest.log_of(console), 800)
    data.verify()
    data.write(count=300, align=8, max=128, flush=40)
    data.verify()
    target.kill()
    nothing_wrong(pair.cache, pair.backing)


def volume_on(target, backing_bdev=None, inode=None):
    """The running volume over a backing bdev, or the flash volume."""
    def found():
        for entry in volume.volumes(target).values():
            wanted = entry["backing_bdev"] == backing_bdev if backing_bdev else entry["kind"] == "flash"
            if wanted and entry["running"]:
                return entry
        return None
    return volume.wait_until("the volume on %s" % (backing_bdev or "the flash"), found, 30)


@pytest.mark.parametrize("cpumask", ["0x1"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_fixture_reads_back_right(start, folder, name, cpumask):
    golden = images.Golden(name, folder)
    nothing_wrong(golden.cache, *golden.backing)
    target = start(cpumask=cpumask)
    volume.aio(target, "c", golden.cache)
    for number, path in enumerate(golden.backing):
        volume.aio(target, "b%d" % number, path)
    for number, expect in sorted(golden.expect.items()):
        entry = volume_on(target, "b%d" % number if number < len(golden.backing) else None)
        assert entry["set"] == superblock.Superblock(golden.cache).set_uuid()
        exported = export.Iscsi(entry["name"])
        numbers = pattern.golden(exported.start(target, tag=number + 1), expect)
        assert numbers["bad"] == 0 and numbers["errors"] == 0 and numbers["written"] > 0
    # again after everything was written back, where there is something to write back
    for number in range(len(golden.backing)):
        entry = volume_on(target, "b%d" % number)
        if name in ("clean-dirty", "two-backing"):
            volume.write_back(target, entry["name"])
    target.stop()
    if name in ("clean-dirty", "two-backing"):
        for number, path in enumerate(golden.backing):
            assert pattern.golden(path, golden.expect[number], at=16)["bad"] == 0


@pytest.mark.limit(180)
def test_flash_volume_in_the_kernel(start, folder):
    target = start()
    pair = volume.Pair(folder, cache_mb=48, backing_mb=64)
    pair.create(target, mode="writeback")
    uuid = volume.the_set(target)["set"]
    target.call("bdev_bcache_create_flash_volume", set=uuid, name="Flash0", size_mb=8, limit=60)
    exported = export.Iscsi("Flash0")
    data = pattern.Pattern(folder, exported.start(target))
    data.write(count=500, align=8, max=64, flush=50)
    target.stop()
    script = REGISTER + """
    for b in /sys/block/bcache*; do [ "$(cat $b/size)" = 16384 ] && v=/dev/$(basename $b); done
    blkio verify $v log=/log || exit 1
    """ + STOP
    console = guest.run(folder, script, images=[pair.cache, pair.backing], files={"log": data.log}, limit=150)
    assert "@trouble" not in console and pattern.summary(console, "verify")["bad"] == 0, console
    nothing_wrong(pair.cache, pair.backing)
