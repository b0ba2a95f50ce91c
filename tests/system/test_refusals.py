"""Every refusal of docs/refusals.md: provoked, its message looked at, nothing written, then overridden where it can be.

A test is called test_ and the name in the last column; the table and the tests must be the same.
"""

import hashlib
import json
import re
import shutil
import sys

import pytest

from kit import export, images, pattern, superblock, tools, volume
from kit.rpc import RpcError

MIB = images.MIB
STATE = {"none": 0, "clean": 1, "dirty": 2, "stale": 3}


def table():
    """The rows of the document: name of the test to (words of the message, what overrides it)."""
    rows = {}
    for line in (tools.ROOT / "docs" / "refusals.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 4 and cells[3].startswith("`"):
            rows[cells[3].strip("`")] = (cells[1], re.findall(r"`([^`]+)`", cells[2]))
    return rows


ROWS = table()


def digest(*paths):
    """Of images' whole contents."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def refused(target, method, **params):
    """Calls what the row of this test says is refused; its message must bear the row's words. Returns it."""
    with pytest.raises(RpcError) as caught:
        target.call(method, limit=60, **params)
    words, _ = row_of_test()
    assert words in caught.value.message, caught.value.message
    return caught.value.message


def row_of_test():
    """The row of the test that runs."""
    frame = sys._getframe()
    while not frame.f_code.co_name.startswith("test_"):
        frame = frame.f_back
    return ROWS[frame.f_code.co_name[len("test_"):]]


def running(target):
    """Names and backing bdevs of what runs."""
    return {entry["name"]: entry["backing_bdev"] for entry in volume.volumes(target).values() if entry["running"]}


def register(target, bdev):
    """Registers a device of a set that has just stopped: its last tasks may hold the device a moment longer."""
    def done():
        try:
            return target.call("bdev_bcache_register", bdev_name=bdev, limit=60)
        except RpcError as error:
            assert "in use" in error.message, error.message
            return None
    return volume.wait_until("%s registered" % bdev, done, limit=20)


def set_state(path, state):
    """Makes a backing superblock say clean or dirty or none."""
    block = superblock.Superblock(path)
    block["flags"] = block["flags"] & ~(3 << 61) | STATE[state] << 61
    block.write()


@pytest.fixture
def pair(shared, folder):
    """A volume of two images, in writeback mode, without dirty data."""
    made = volume.Pair(folder)
    made.create(shared, mode="writeback")
    return made


def add_copy(target, folder, path, name="Copy"):
    """A bdev on a copy of an image; returns the copy's path."""
    copied = images.copy(path, folder / ("%s.img" % name))
    volume.aio(target, name, copied)
    return copied


@pytest.fixture
def dirty(shared, folder):
    """Linux's images with dirty data, as paths: cache, backing; the bdevs are called fast and slow."""
    golden = images.Golden("clean-dirty", folder)
    volume.aio(shared, "fast", golden.cache)
    volume.aio(shared, "slow", golden.backing[0])
    return golden.cache, golden.backing[0]


def start_dirty(target):
    """Registers both; returns the volume's name and its set."""
    target.call("bdev_bcache_register", bdev_name="fast", limit=60)
    target.call("bdev_bcache_register", bdev_name="slow", limit=60)
    (entry,) = volume.volumes(target).values()
    target.call("bdev_bcache_set_options", name=entry["name"], writeback_running=False)
    assert entry["running"] and entry["dirty_bytes"] > 0
    return entry["name"], entry["set"]


def test_the_table_and_the_tests_are_the_same():
    here = {name[len("test_"):] for name in globals() if name.startswith("test_")} - {"the_table_and_the_tests_are_the_same"}
    assert here == set(ROWS)
    methods = {method["name"]: method for method in
               json.loads((tools.ROOT / "spdk" / "bcache_rpc.json").read_text())["methods"]}
    for name, (words, override) in ROWS.items():
        assert words, name
        if override:
            method = methods[override[0]]
            known = {param["name"] for param in method["params"]}
            assert set(override[1:]) <= known, name


def test_copy_of_a_backing_device(shared, folder, pair):
    copied = add_copy(shared, folder, pair.backing)
    before = digest(copied)
    message = refused(shared, "bdev_bcache_register", bdev_name="Copy")
    assert "Copy" in message and "Vol0" in message and pair.backing_bdev in message
    for words in ({}, {"force": True}, {"force": True, "discard_dirty": True}):
        refused(shared, "bdev_bcache_create", name="Vol9", cache_bdev=pair.cache_bdev, backing_bdev="Copy", **words)
    assert digest(copied) == before
    assert running(shared) == {"Vol0": pair.backing_bdev}
    found = shared.call("bdev_bcache_register", bdev_name="Copy", new_uuid=True, name="Clone", limit=60)
    assert running(shared) == {"Vol0": pair.backing_bdev, "Clone": "Copy"}
    assert found["uuid"] != volume.volume(shared, "Vol0")["uuid"]


def test_copy_of_a_cache_device(shared, folder, pair):
    copied = add_copy(shared, folder, pair.cache)
    before = digest(copied)
    message = refused(shared, "bdev_bcache_register", bdev_name="Copy")
    assert pair.cache_bdev in message
    volume.aio(shared, "other", images.sparse(folder / "other.img", 64 * MIB))
    refused(shared, "bdev_bcache_create", name="Vol9", cache_bdev="Copy", backing_bdev="other")
    assert digest(copied) == before
    shared.call("bdev_bcache_stop_set", set=volume.the_set(shared)["set"], limit=60)
    assert register(shared, "Copy")["kind"] == "cache"


def test_new_uuid_of_a_dirty_copy(shared, dirty):
    before = digest(*dirty)
    refused(shared, "bdev_bcache_register", bdev_name="slow", new_uuid=True)
    assert digest(*dirty) == before
    tools.run(tools.built("bcachectl"), "new-uuid", "--yes", dirty[1], expect=(1,))
    assert digest(*dirty) == before


def test_older_copy(shared, folder, pair):
    uuid = volume.the_set(shared)["set"]
    shared.call("bdev_bcache_stop_set", set=uuid, limit=60)
    old = images.copy(pair.backing, folder / "old.img")
    for _ in range(2):
        register(shared, pair.cache_bdev)
        register(shared, pair.backing_bdev)
        shared.call("bdev_bcache_stop_set", set=uuid, limit=60)
    volume.aio(shared, "Old", old)
    before = digest(old)
    register(shared, pair.cache_bdev)
    refused(shared, "bdev_bcache_register", bdev_name="Old")
    assert digest(old) == before
    assert shared.call("bdev_bcache_create", name="Vol0", cache_bdev=pair.cache_bdev, backing_bdev="Old", force=True,
                       discard_dirty=True, limit=60) == "Vol0"


def left_alone(target, bdev):
    """The entry of a bdev that examine left alone: it says why, and the log does."""
    def found():
        return [entry for entry in volume.volumes(target).values()
                if entry["backing_bdev"] == bdev and not entry["running"]]
    (entry,) = volume.wait_until("%s in the list" % bdev, found, limit=20)
    words, _ = row_of_test()
    assert words in entry["reason"] and words in target.log_end(60)
    return entry


def test_bdev_of_another_module(start, folder):
    target = start()
    base = images.sparse(folder / "base.img", 128 * MIB)
    volume.aio(target, "fast", images.sparse(folder / "fast.img", 64 * MIB))
    volume.aio(target, "base", base)
    target.call("bdev_passthru_create", name="top", base_bdev_name="base")
    target.call("bdev_bcache_create", name="Vol0", cache_bdev="fast", backing_bdev="top", limit=60)
    target.restart()
    volume.aio(target, "fast", folder / "fast.img")
    volume.aio(target, "base", base)
    left_alone(target, "base")
    # the right one can still be made, and comes up
    target.call("bdev_passthru_create", name="top", base_bdev_name="base")
    volume.wait_volume(target, "Vol0")
    assert list(volume.volumes(target)) == ["Vol0"]
    target.restart()
    volume.aio(target, "fast", folder / "fast.img")
    volume.aio(target, "base", base)
    left_alone(target, "base")
    target.call("bdev_bcache_register", bdev_name="base", limit=60)
    assert running(target) == {"Vol0": "base"}


def test_smaller_bdev(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target)
    target.stop()
    with open(pair.backing, "r+b") as file:
        file.truncate(100 * MIB)
    target.start()
    pair.add_bdevs(target)
    assert left_alone(target, pair.backing_bdev)["name"] == "Vol0"
    target.call("bdev_bcache_register", bdev_name=pair.backing_bdev, limit=60)
    assert volume.volume(target, "Vol0")["size_bytes"] < 100 * MIB


@pytest.fixture
def shrunk(shared, folder):
    """Linux's images with dirty data, the backing one cut within them: (its path, the sector of its end)."""
    golden = images.Golden("clean-dirty", folder)
    keys = json.loads(tools.run(tools.built("bcachectl"), "dump", "keys", "--json", golden.cache))
    end = max(key["start"] + key["sectors"] for key in keys if key["dirty"] and key["at"] is not None)
    cut = (end - 64) // 8 * 8
    with open(golden.backing[0], "r+b") as file:
        file.truncate(cut * images.SECTOR)
    volume.aio(shared, "fast", golden.cache)
    volume.aio(shared, "slow", golden.backing[0])
    shared.call("bdev_bcache_register", bdev_name="fast", limit=60)
    return golden.backing[0], cut


def test_dirty_data_beyond_the_end(shared, shrunk):
    path, cut = shrunk
    before = digest(path)
    assert str(cut) in refused(shared, "bdev_bcache_register", bdev_name="slow")
    (entry,) = volume.volumes(shared).values()
    assert not entry["running"] and entry["dirty_bytes_beyond_end"] > 0
    refused(shared, "bdev_bcache_run", name=entry["name"])
    refused(shared, "bdev_bcache_detach", name=entry["name"])
    assert digest(path) == before
    assert shared.call("bdev_bcache_run", name=entry["name"], accept_size=True, limit=60) is True
    assert running(shared) == {entry["name"]: "slow"}
    beyond = volume.volume(shared, entry["name"])["dirty_bytes_beyond_end"]
    assert beyond == entry["dirty_bytes_beyond_end"]
    shared.call("bdev_bcache_flush_start", name=entry["name"])
    volume.wait_until("the end of the write-back", lambda: volume.volume(shared, entry["name"])["dirty_bytes"] == beyond)


def test_detach_with_dirty_data_beyond_the_end(shared, shrunk):
    with pytest.raises(RpcError):
        shared.call("bdev_bcache_register", bdev_name="slow", limit=60)
    (name,) = volume.volumes(shared)
    shared.call("bdev_bcache_run", name=name, accept_size=True, limit=60)
    refused(shared, "bdev_bcache_detach", name=name)
    assert shared.call("bdev_bcache_detach", name=name, discard_dirty=True, limit=60) is True
    assert volume.volume(shared, name)["state"] == "no cache"


def absent(target, dirty):
    """Starts a set whose volume Gone is absent with dirty data; returns the set."""
    superblock.change(dirty[1], label=b"Gone".ljust(32, b"\0"))
    target.call("bdev_bcache_create", name="Gone", cache_bdev="fast", backing_bdev="slow", limit=60)
    target.call("bdev_bcache_set_options", name="Gone", writeback_running=False)
    target.call("bdev_bcache_detach", name="Gone", limit=60)
    target.call("bdev_bcache_create", name="Gone", cache_bdev="fast", backing_bdev="slow", mode="writeback", limit=60)
    target.call("bdev_bcache_set_options", name="Gone", writeback_running=False)
    exported = export.Iscsi("Gone")
    pattern.Pattern(dirty[0].parent, exported.start(target)).write(count=20, align=8, max=64)
    exported.stop(target)
    target.call("bdev_bcache_delete", name="Gone", limit=60)
    entry = volume.the_set(target)
    assert entry["dirty_bytes"] > 0
    return entry["set"]


def test_name_of_an_absent_volume(shared, folder, dirty):
    absent(shared, dirty)
    blank = images.sparse(folder / "blank.img", 128 * MIB)
    volume.aio(shared, "blank", blank)
    before = digest(blank)
    for words in ({}, {"force": True}):
        message = refused(shared, "bdev_bcache_create", name="Gone", cache_bdev="fast", backing_bdev="blank",
                          **words)
        assert superblock.uuid.UUID(bytes=superblock.Superblock(dirty[1])["uuid"]).urn[9:] in message
    assert digest(blank) == before
    assert shared.call("bdev_bcache_create", name="Gone", cache_bdev="fast", backing_bdev="blank", discard_dirty=True,
                       limit=60) == "Gone"


def test_name_of_an_absent_volume_on_flash(shared, dirty):
    uuid = absent(shared, dirty)
    refused(shared, "bdev_bcache_create_flash_volume", set=uuid, name="Gone", size_mb=1)
    (known,) = [entry for entry in volume.the_set(shared)["known_volumes"] if entry["dirty_bytes"]]
    shared.call("bdev_bcache_forget_volume", set=uuid, uuid=known["uuid"], discard_dirty=True, limit=60)
    assert shared.call("bdev_bcache_create_flash_volume", set=uuid, name="Gone", size_mb=1, limit=60) == "Gone"


def test_data_within_a_block(shared, folder):
    pair = volume.Pair(folder, block_size=512)
    pair.create(shared)
    shared.call("bdev_bcache_detach", name="Vol0", limit=60)
    shared.call("bdev_bcache_delete", name="Vol0", limit=60)
    shared.call("bdev_aio_delete", name=pair.backing_bdev)
    superblock.change(pair.backing, version=4, data_offset=17, block_size=8)
    volume.aio(shared, pair.backing_bdev, pair.backing, 4096)
    before = digest(pair.backing)
    refused(shared, "bdev_bcache_register", bdev_name=pair.backing_bdev)
    refused(shared, "bdev_bcache_create", name="Vol0", cache_bdev=pair.cache_bdev, backing_bdev=pair.backing_bdev)
    assert digest(pair.backing) == before


def test_blocks_too_large(shared, folder):
    pair = volume.Pair(folder)
    pair.create(shared)
    shared.call("bdev_bcache_stop_set", set=volume.the_set(shared)["set"], limit=60)
    for bdev, path in ((pair.cache_bdev, pair.cache), (pair.backing_bdev, pair.backing)):
        shared.call("bdev_aio_delete", name=bdev)
        volume.aio(shared, bdev, path, 4096)
        before = digest(path)
        refused(shared, "bdev_bcache_register", bdev_name=bdev)
        assert digest(path) == before


def test_blocks_with_metadata(shared, folder):
    volume.aio(shared, "blank", images.sparse(folder / "blank.img", 64 * MIB))
    try:
        shared.call("bdev_null_create", name="odd", num_blocks=200000, block_size=520, md_size=8)
    except RpcError:
        # newer releases count the data alone
        shared.call("bdev_null_create", name="odd", num_blocks=200000, block_size=512, md_size=8)
    try:
        assert "520" in refused(shared, "bdev_bcache_register", bdev_name="odd")
        refused(shared, "bdev_bcache_create", name="Vol0", cache_bdev="odd", backing_bdev="blank")
    finally:
        shared.call("bdev_null_delete", name="odd")


def test_buckets_of_one_block(shared, folder):
    made = volume.Pair(folder)
    made.add_bdevs(shared)
    before = digest(made.cache, made.backing)
    sizes = {"name": made.name, "cache_bdev": made.cache_bdev, "backing_bdev": made.backing_bdev,
             "bucket_size_kb": 4, "block_size": 4096}
    refused(shared, "bdev_bcache_create", **sizes)
    assert digest(made.cache, made.backing) == before
    assert shared.call("bdev_bcache_create", limit=60, force=True, **sizes) == made.name


def test_other_data(shared, folder):
    pair = volume.Pair(folder)
    images.patch(pair.backing, 1080, b"\x53\xef")
    pair.add_bdevs(shared)
    words = {"name": "Vol0", "cache_bdev": pair.cache_bdev, "backing_bdev": pair.backing_bdev}
    before = digest(pair.cache, pair.backing)
    refused(shared, "bdev_bcache_create", **words)
    assert digest(pair.cache, pair.backing) == before
    assert shared.call("bdev_bcache_create", force=True, limit=60, **words) == "Vol0"


@pytest.mark.parametrize("fields", [{"offset": 0}, {"version": 0x04000409}], ids=str)
def test_foreign_superblock(shared, folder, fields):
    pair = volume.Pair(folder)
    golden = images.Golden("clean-dirty", folder)
    superblock.change(golden.backing[0], **fields)
    shutil.copy(golden.backing[0], pair.backing)
    pair.add_bdevs(shared)
    words = {"name": "Vol0", "cache_bdev": pair.cache_bdev, "backing_bdev": pair.backing_bdev}
    before = digest(pair.cache, pair.backing)
    for message in (refused(shared, "bdev_bcache_register", bdev_name=pair.backing_bdev),
                    refused(shared, "bdev_bcache_create", **words)):
        assert not re.search("force|damaged|bad superblock|format", message), message
    assert digest(pair.cache, pair.backing) == before
    assert shared.call("bdev_bcache_create", force=True, limit=60, **words) == "Vol0"


def two_sets(target, folder):
    """Two volumes on sets of their own, stopped: the second set's cache and the first's backing device."""
    first, second = volume.Pair(folder, "Vol0", tag="0"), volume.Pair(folder, "Vol1", tag="1")
    for pair in (first, second):
        pair.create(target, mode="writeback")
    for name in ("Vol0", "Vol1"):
        target.call("bdev_bcache_stop_set", set=volume.volume(target, name)["set"], limit=60)
    return second, first


def test_device_of_another_set(shared, folder):
    cache, backing = two_sets(shared, folder)
    words = {"name": "Vol2", "cache_bdev": cache.cache_bdev, "backing_bdev": backing.backing_bdev}
    before = digest(backing.backing)
    refused(shared, "bdev_bcache_create", **words)
    assert digest(backing.backing) == before
    assert shared.call("bdev_bcache_create", force=True, limit=60, **words) == "Vol2"


def test_set_on_itself(shared, folder, pair):
    before = digest(pair.backing)
    refused(shared, "bdev_bcache_create", name="Vol1", cache_bdev=pair.cache_bdev, backing_bdev=pair.name)
    assert list(running(shared)) == [pair.name]
    assert digest(pair.backing) == before


def test_dirty_device_of_another_set(shared, folder):
    cache, backing = two_sets(shared, folder)
    set_state(backing.backing, "dirty")
    words = {"name": "Vol2", "cache_bdev": cache.cache_bdev, "backing_bdev": backing.backing_bdev}
    before = digest(backing.backing)
    for more in ({}, {"force": True}, {"discard_dirty": True}):
        refused(shared, "bdev_bcache_create", **words, **more)
    assert digest(backing.backing) == before
    assert shared.call("bdev_bcache_create", force=True, discard_dirty=True, limit=60, **words) == "Vol2"


def test_running_without_the_dirty_data(shared, dirty):
    with pytest.raises(RpcError):
        shared.call("bdev_bcache_register", bdev_name="slow", limit=60)
    (name,) = volume.volumes(shared)
    before = digest(dirty[1])
    refused(shared, "bdev_bcache_run", name=name)
    assert digest(dirty[1]) == before
    assert shared.call("bdev_bcache_run", name=name, discard_dirty=True, limit=60) is True
    assert volume.volume(shared, name)["state"] == "inconsistent"


def test_name_taken(shared, folder, pair):
    other = images.sparse(folder / "other.img", 64 * MIB)
    volume.aio(shared, "other", other)
    before = digest(other)
    refused(shared, "bdev_bcache_create", name="Vol0", cache_bdev=pair.cache_bdev, backing_bdev="other")
    assert digest(other) == before
    shared.call("bdev_bcache_create", name="Vol1", cache_bdev=pair.cache_bdev, backing_bdev="other", limit=60)
    shared.call("bdev_bcache_detach", name="Vol1", limit=60)
    shared.call("bdev_bcache_delete", name="Vol1", limit=60)
    refused(shared, "bdev_bcache_register", bdev_name="other", name="Vol0")
    shared.call("bdev_bcache_register", bdev_name="other", name="Vol2", limit=60)
    assert running(shared) == {"Vol0": pair.backing_bdev, "Vol2": "other"}


def test_forgetting_dirty_data(shared, dirty):
    name, uuid = start_dirty(shared)
    volume_uuid = volume.volume(shared, name)["uuid"]
    shared.call("bdev_bcache_delete", name=name, limit=60)
    refused(shared, "bdev_bcache_forget_volume", set=uuid, uuid=volume_uuid)
    assert volume.the_set(shared)["dirty_bytes"] > 0
    shared.call("bdev_bcache_forget_volume", set=uuid, uuid=volume_uuid, discard_dirty=True, limit=60)
    assert volume.the_set(shared)["dirty_bytes"] == 0


@pytest.fixture
def flash(shared, pair):
    """A volume of 4 MiB on the cache device alone, with data; its name."""
    shared.call("bdev_bcache_create_flash_volume", set=volume.the_set(shared)["set"], name="Flash", size_mb=4, limit=60)
    exported = export.Iscsi("Flash")
    pattern.Pattern(pair.cache.parent, exported.start(shared)).write(count=200, align=8, max=64)
    exported.stop(shared)
    return "Flash"


def test_deleting_a_flash_volume(shared, flash):
    refused(shared, "bdev_bcache_delete_flash_volume", name=flash)
    assert volume.volume(shared, flash)["running"]
    assert shared.call("bdev_bcache_delete_flash_volume", name=flash, discard_dirty=True, limit=60) is True


def test_name_of_a_flash_volume_that_is_not_up(shared, folder, pair, flash):
    shared.call("bdev_bcache_delete", name=flash, limit=60)
    blank = images.sparse(folder / "blank.img", 128 * MIB)
    volume.aio(shared, "blank", blank)
    before = digest(blank)
    for words in ({}, {"force": True}, {"force": True, "discard_dirty": True}):
        refused(shared, "bdev_bcache_create", name=flash, cache_bdev=pair.cache_bdev, backing_bdev="blank", **words)
    assert digest(blank) == before
    register(shared, pair.cache_bdev)
    assert volume.volume(shared, flash)["running"]


def test_shrinking_a_flash_volume(shared, flash):
    refused(shared, "bdev_bcache_resize_flash_volume", name=flash, size_mb=1)
    assert volume.volume(shared, flash)["size_bytes"] == 4 * MIB
    assert shared.call("bdev_bcache_resize_flash_volume", name=flash, size_mb=1, discard_dirty=True, limit=60) is True


def test_bdev_without_writes(start, folder):
    target = start(memory_mb=512)
    volume.aio(target, "pool", images.sparse(folder / "pool.img", 128 * MIB))
    volume.aio(target, "fast", images.sparse(folder / "fast.img", 64 * MIB))
    target.call("bdev_lvol_create_lvstore", bdev_name="pool", lvs_name="store", limit=60)
    volume.lvol(target, "create", 64, lvs_name="store", lvol_name="live")
    target.call("bdev_lvol_snapshot", lvol_name="store/live", snapshot_name="old", limit=60)
    before = digest(folder / "pool.img", folder / "fast.img")
    refused(target, "bdev_bcache_register", bdev_name="store/old")
    refused(target, "bdev_bcache_create", name="Vol0", cache_bdev="fast", backing_bdev="store/old")
    refused(target, "bdev_bcache_create", name="Vol0", cache_bdev="store/old", backing_bdev="fast")
    assert running(target) == {} and digest(folder / "pool.img", folder / "fast.img") == before
    target.stop()


def test_zoned_bdev(start, folder):
    target = start(memory_mb=512)
    volume.aio(target, "flat", images.sparse(folder / "flat.img", 64 * MIB), 4096)
    volume.aio(target, "fast", images.sparse(folder / "fast.img", 64 * MIB), 4096)
    target.call("bdev_zone_block_create", name="Zoned", base_bdev="flat", zone_capacity=4096, optimal_open_zones=1)
    before = digest(folder / "flat.img", folder / "fast.img")
    refused(target, "bdev_bcache_register", bdev_name="Zoned")
    refused(target, "bdev_bcache_create", name="Vol0", cache_bdev="fast", backing_bdev="Zoned")
    refused(target, "bdev_bcache_create", name="Vol0", cache_bdev="Zoned", backing_bdev="fast")
    assert running(target) == {} and digest(folder / "flat.img", folder / "fast.img") == before
    target.stop()
