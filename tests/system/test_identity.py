"""Which bdev is the device: parts of arrays and splits, aliases, and what kernels keep of the note in the superblock."""

import json

import pytest

from kit import export, guest, images, pattern, superblock, volume
from kit.target import Target
from test_kernel import REGISTER, STOP

MIB = images.MIB
NOTE = slice(144, 184)

DETACH_AND_ATTACH = """
set=$(basename $(readlink -f /sys/block/bcache0/bcache/cache))
blkio write /dev/bcache0 count=50 seed=1 first=1 align=8 max=64 flush=10 log=/dev/null || exit 1
echo 1 > /sys/block/bcache0/bcache/detach
n=0; while [ "$(cat /sys/block/bcache0/bcache/state)" != "no cache" ] && [ $n -lt 200 ]; do sleep 0.1; n=$((n + 1)); done
echo "@detached $(cat /sys/block/bcache0/bcache/state)"
echo $set > /sys/block/bcache0/bcache/attach
echo "@attached $(cat /sys/block/bcache0/bcache/state)"
"""


def note(path):
    """The words of a superblock that say what it last ran on."""
    return bytes(superblock.Superblock(path).data[NOTE])


@pytest.mark.limit(180)
def test_kernels_keep_what_a_device_last_ran_on(start, folder):
    """Attach, run, detach, attach, in the kernel: the words stay as they are, and the device comes up by itself."""
    target = start()
    pair = volume.Pair(folder, cache_mb=48, backing_mb=64)
    pair.create(target, mode="writeback")
    target.stop()
    before = note(pair.cache), note(pair.backing)
    assert all(b"spdkbdev" in words and b"aio" in words for words in before)
    console = guest.run(folder, REGISTER + DETACH_AND_ATTACH + STOP, images=[pair.cache, pair.backing], limit=150)
    assert "@trouble" not in console, console
    assert "@detached no cache" in console and "@attached clean" in console, console
    assert (note(pair.cache), note(pair.backing)) == before
    target.start()
    pair.reopen(target)


def legs(target, folder):
    """The bdevs of a stripe's legs and of the cache device, in the order of an operator's script."""
    for name in ("fast", "A", "B"):
        path = folder / ("%s.img" % name)
        volume.aio(target, name, path if path.exists() else images.sparse(path, 64 * MIB))


def stripe(target):
    """The stripe over both legs."""
    target.call("bdev_raid_create", name="M", raid_level="raid0", strip_size_kb=64, base_bdevs=["A", "B"])


def left(target):
    """The bdevs that examine left alone."""
    return [entry["backing_bdev"] for entry in volume.volumes(target).values() if not entry["running"]]


def test_a_leg_of_a_stripe_is_not_taken_for_the_stripe(start, folder):
    target = start()
    legs(target, folder)
    stripe(target)
    target.call("bdev_bcache_create", name="Vol0", cache_bdev="fast", backing_bdev="M", mode="writeback", limit=60)
    exported = export.Iscsi("Vol0")
    data = pattern.Pattern(folder, exported.start(target))
    data.write(count=300, align=8, max=256, flush=50)
    saved = {"subsystems": [{"subsystem": "bdev", "config": target.call("framework_get_config", name="bdev")}]}
    target.restart()
    legs(target, folder)
    volume.wait_until("the leg in the list", lambda: left(target) == ["A"], limit=20)
    stripe(target)
    assert volume.wait_volume(target, "Vol0")["backing_bdev"] == "M"
    assert left(target) == []
    exported.start(target)
    data.verify()
    target.stop()
    # the order that save_config writes starts again, too
    path = folder / "saved.json"
    path.write_text(json.dumps(saved))
    again = Target(folder, name="again", config=path).start()
    try:
        assert volume.wait_volume(again, "Vol0")["backing_bdev"] == "M"
        exported.start(again)
        data.verify()
        again.stop()
    finally:
        again.kill()


def test_the_base_of_a_split_is_not_taken_for_its_first_half(start, folder):
    target = start()
    base = images.sparse(folder / "base.img", 128 * MIB)
    backing = [images.sparse(folder / ("back%d.img" % i), 64 * MIB) for i in range(2)]

    def bdevs():
        volume.aio(target, "base", base)
        for number, path in enumerate(backing):
            volume.aio(target, "back%d" % number, path)

    bdevs()
    target.call("bdev_split_create", base_bdev="base", split_count=2)
    for number in range(2):
        target.call("bdev_bcache_create", name="Vol%d" % number, cache_bdev="basep%d" % number,
                    backing_bdev="back%d" % number, mode="writeback", limit=60)
    target.restart()
    bdevs()
    volume.wait_until("the base in the list", lambda: "base" in left(target), limit=20)
    assert target.call("bdev_bcache_get_sets") == []
    target.call("bdev_split_create", base_bdev="base", split_count=2)
    for number in range(2):
        volume.wait_volume(target, "Vol%d" % number)
    assert len(volume.volumes(target)) == 2
    target.stop()


def test_bdevs_that_the_option_names_are_left_alone(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target)
    target.stop()
    excluding = start(wait_for_rpc=True)
    excluding.call("bdev_bcache_set_module_options", examine_exclude=[pair.backing_bdev])
    excluding.call("framework_start_init", limit=60)
    pair.add_bdevs(excluding)
    volume.wait_until("the set", lambda: excluding.call("bdev_bcache_get_sets"), limit=20)
    assert volume.volumes(excluding) == {}
    config = excluding.call("framework_get_config", name="bdev")
    assert {"method": "bdev_bcache_set_module_options", "params": {"examine_exclude": [pair.backing_bdev]}} in config
    excluding.call("bdev_bcache_register", bdev_name=pair.backing_bdev, limit=60)
    volume.wait_volume(excluding, "Vol0")


def test_an_alias_names_the_bdev_again_and_again(start, folder):
    """An lvol's alias in create, in register, and in a configuration that is loaded at each start."""
    path = images.sparse(folder / "lvs.img", 256 * MIB)
    fast = images.sparse(folder / "fast.img", 64 * MIB)
    target = start()
    volume.aio(target, "base", path)
    volume.aio(target, "fast", fast)
    target.call("bdev_lvol_create_lvstore", bdev_name="base", lvs_name="lvs", limit=60)
    volume.lvol(target, "create", 100, lvol_name="lv", lvs_name="lvs")
    words = {"name": "Vol0", "cache_bdev": "fast", "backing_bdev": "lvs/lv"}
    for _ in range(2):
        assert target.call("bdev_bcache_create", limit=60, **words) == "Vol0"
    own = volume.volume(target, "Vol0")["backing_bdev"]
    assert own != "lvs/lv"
    assert target.call("bdev_bcache_register", bdev_name="lvs/lv", limit=60)["kind"] == "backing"
    target.stop()
    config = folder / "alias.json"
    config.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_bcache_set_module_options", "params": {"examine": False}},
        {"method": "bdev_bcache_register", "params": {"bdev_name": "fast", "when_up": True}},
        {"method": "bdev_bcache_register", "params": {"bdev_name": "lvs/lv", "when_up": True}},
        {"method": "bdev_aio_create", "params": {"name": "fast", "filename": str(fast), "block_size": 512}},
        {"method": "bdev_aio_create", "params": {"name": "base", "filename": str(path), "block_size": 512}},
    ]}]}))
    for turn in range(2):
        again = Target(folder, name="again%d" % turn, config=config).start()
        try:
            assert volume.wait_volume(again, "Vol0")["backing_bdev"] == own
            again.stop()
        finally:
            again.kill()
