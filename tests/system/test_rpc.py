"""The RPC contract: what every method takes and answers."""

import pytest

from kit import export, images, pattern, superblock, tools, volume
from kit.rpc import RpcError

INVALID_PARAMS = -32602
ENODEV = -19
MODES = ("writethrough", "writeback", "writearound", "none")

# method: parameters that are right in form (the names need not exist)
REQUIRED = {
    "bdev_bcache_create": {"name": "V", "cache_bdev": "C", "backing_bdev": "B"},
    "bdev_bcache_create_flash_volume": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5", "name": "V", "size_mb": 1},
    "bdev_bcache_register": {"bdev_name": "B"},
    "bdev_bcache_attach": {"name": "V", "set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
    "bdev_bcache_detach": {"name": "V"},
    "bdev_bcache_delete": {"name": "V"},
    "bdev_bcache_stop_set": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
    "bdev_bcache_unregister_set": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
    "bdev_bcache_set_cache_mode": {"name": "V", "mode": "writeback"},
    "bdev_bcache_set_options": {"name": "V"},
    "bdev_bcache_set_set_options": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
    "bdev_bcache_delete_flash_volume": {"name": "V"},
    "bdev_bcache_resize_flash_volume": {"name": "V", "size_mb": 1},
    "bdev_bcache_run": {"name": "V"},
    "bdev_bcache_forget_volume": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5", "inode": 0},
    "bdev_bcache_get_bdevs": {},
    "bdev_bcache_get_sets": {},
    "bdev_bcache_get_stats": {"name": "V"},
    "bdev_bcache_reset_stats": {"name": "V"},
    "bdev_bcache_flush_start": {"name": "V"},
    "bdev_bcache_flush_status": {"name": "V"},
    "bdev_bcache_flush_cancel": {"name": "V"},
    "bdev_bcache_detach_start": {"name": "V"},
    "bdev_bcache_detach_status": {"name": "V"},
    "bdev_bcache_detach_cancel": {"name": "V"},
    "bdev_bcache_unregister_set_start": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
    "bdev_bcache_unregister_set_status": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
    "bdev_bcache_unregister_set_cancel": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
    "bdev_bcache_wait_for_volume": {"name": "V"},
    "bdev_bcache_gc": {"set": "8a9ccff6-6f26-4d2a-8c67-4ab0d8c4b5d5"},
}
NAMES_SOMETHING = [method for method, params in REQUIRED.items() if params]


def refused(target, method, **params):
    """Calls what must be refused; returns the error, which must say something."""
    with pytest.raises(RpcError) as caught:
        target.call(method, limit=60, **params)
    error = caught.value
    assert error.code < 0
    assert len(error.message) > 10, "an error must say what is wrong: %r" % error.message
    return error


def test_every_method_is_there(shared):
    methods = set(shared.call("rpc_get_methods"))
    assert set(REQUIRED) <= methods
    # only before the subsystems start, so it is not among the current ones' names without that
    assert "bdev_bcache_set_module_options" in methods


@pytest.mark.parametrize("method", sorted(REQUIRED))
def test_unknown_parameter_is_refused(shared, method):
    error = refused(shared, method, **REQUIRED[method], surprise=1)
    assert error.code == INVALID_PARAMS
    assert "surprise" in error.message


@pytest.mark.parametrize("method", sorted(NAMES_SOMETHING))
def test_missing_parameters_are_refused(shared, method):
    assert refused(shared, method).code == INVALID_PARAMS


@pytest.mark.parametrize("method", sorted(NAMES_SOMETHING))
def test_wrong_type_is_refused(shared, method):
    params = {key: [] for key in REQUIRED[method]}
    assert refused(shared, method, **params).code == INVALID_PARAMS


@pytest.mark.parametrize("method", sorted(set(NAMES_SOMETHING) - {"bdev_bcache_wait_for_volume"}))
def test_what_does_not_exist_is_named(shared, method):
    error = refused(shared, method, **REQUIRED[method])
    assert error.code == ENODEV
    assert any(str(value) in error.message for value in REQUIRED[method].values())


def test_create_and_what_the_lists_say(shared, folder):
    pair = volume.Pair(folder, "Vol0")
    assert pair.create(shared, mode="writeback") == "Vol0"
    entry = volume.volume(shared, "Vol0")
    for key in ("name", "uuid", "kind", "state", "cache_mode", "running", "backing_bdev", "set", "inode", "size_bytes",
                "dirty_bytes", "options"):
        assert key in entry, key
    assert entry["kind"] == "cached" and entry["cache_mode"] == "writeback" and entry["running"] is True
    assert entry["backing_bdev"] == pair.backing_bdev and entry["dirty_bytes"] == 0
    assert entry["state"] in ("clean", "dirty") and isinstance(entry["options"], dict)
    assert 128 * images.MIB - images.MIB <= entry["size_bytes"] < 128 * images.MIB

    found = volume.the_set(shared)
    for key in ("set", "state", "devices", "volumes", "tree_depth", "btree_nodes", "cached_extents",
                "cache_available_percent", "journal", "options"):
        assert key in found, key
    assert found["set"] == entry["set"] and found["volumes"] == ["Vol0"]
    (device,) = found["devices"]
    for key in ("bdev_name", "uuid", "index", "nbuckets", "bucket_size_kb", "buckets"):
        assert key in device, key
    assert device["bdev_name"] == pair.cache_bdev and device["nbuckets"] >= 1024
    assert device["nbuckets"] * device["bucket_size_kb"] <= 64 * 1024
    assert set(device["buckets"]) >= {"free", "clean", "dirty", "metadata"}
    assert sum(device["buckets"][key] for key in ("free", "clean", "dirty", "metadata")) <= device["nbuckets"]

    (bdev,) = shared.call("bdev_get_bdevs", name="Vol0")
    assert bdev["num_blocks"] * bdev["block_size"] == entry["size_bytes"]
    for kind in ("read", "write", "flush", "unmap", "write_zeroes", "reset"):
        assert bdev["supported_io_types"][kind], kind


def test_default_mode_is_writethrough(shared, folder):
    volume.Pair(folder).create(shared)
    assert volume.volume(shared, "Vol0")["cache_mode"] == "writethrough"


def test_create_again_changes_nothing(shared, folder):
    pair = volume.Pair(folder)
    pair.create(shared)
    before = volume.volume(shared, "Vol0")
    again = shared.call("bdev_bcache_create", name="Vol0", cache_bdev=pair.cache_bdev, backing_bdev=pair.backing_bdev)
    assert again == "Vol0" and volume.volume(shared, "Vol0") == before


def test_what_create_writes_is_bcache(shared, folder):
    pair = volume.Pair(folder, "the-name-of-32-bytes-is-longest.")
    pair.create(shared, mode="writearound", bucket_size_kb=32)
    entry = volume.volume(shared, pair.name)
    cache, backing = superblock.Superblock(pair.cache), superblock.Superblock(pair.backing)
    for block in (cache, backing):
        assert block.is_bcache() and block["csum"] == block.checksum() and block.set_uuid() == entry["set"]
    assert cache["bucket_size"] == 64 and cache["version"] == 3
    assert backing["version"] in (1, 4) and backing["flags"] & 15 == MODES.index("writearound")
    assert backing["label"].rstrip(b"\0") == pair.name.encode()


@pytest.mark.parametrize("mode", MODES)
def test_cache_mode_can_be_set(shared, folder, mode):
    pair = volume.Pair(folder)
    pair.create(shared)
    assert shared.call("bdev_bcache_set_cache_mode", name="Vol0", mode=mode) is True
    assert volume.volume(shared, "Vol0")["cache_mode"] == mode
    assert superblock.Superblock(pair.backing)["flags"] & 15 == MODES.index(mode)


def test_several_backing_devices_share_a_set(shared, folder):
    first = volume.Pair(folder, "Vol0")
    first.create(shared)
    volume.aio(shared, "second", images.sparse(folder / "second.img", 64 * images.MIB))
    shared.call("bdev_bcache_create", name="Vol1", cache_bdev=first.cache_bdev, backing_bdev="second", limit=60)
    found = volume.volumes(shared)
    assert found["Vol0"]["set"] == found["Vol1"]["set"] and found["Vol0"]["inode"] != found["Vol1"]["inode"]
    assert sorted(volume.the_set(shared)["volumes"]) == ["Vol0", "Vol1"]


def test_delete_and_register_bring_a_volume_back(shared, folder):
    pair = volume.Pair(folder)
    pair.create(shared, mode="writeback")
    uuid = volume.volume(shared, "Vol0")["uuid"]
    assert shared.call("bdev_bcache_delete", name="Vol0", limit=60) is True
    assert "Vol0" not in volume.volumes(shared)
    answer = shared.call("bdev_bcache_register", bdev_name=pair.backing_bdev, limit=60)
    assert answer == {"kind": "backing", "uuid": uuid, "set": volume.the_set(shared)["set"]}
    assert volume.wait_volume(shared, "Vol0")["uuid"] == uuid


def test_stop_set_and_register_in_either_order(shared, folder):
    pair = volume.Pair(folder)
    pair.create(shared, mode="writeback")
    uuid = volume.the_set(shared)["set"]
    for order in ((pair.cache_bdev, pair.backing_bdev), (pair.backing_bdev, pair.cache_bdev)):
        assert shared.call("bdev_bcache_stop_set", set=uuid, limit=60) is True
        assert shared.call("bdev_bcache_get_sets") == [] and "Vol0" not in volume.volumes(shared)
        for bdev in order:
            answer = shared.call("bdev_bcache_register", bdev_name=bdev, limit=60)
            assert answer["kind"] == ("cache" if bdev == pair.cache_bdev else "backing") and answer["set"] == uuid
        volume.wait_volume(shared, "Vol0")


def test_detach_attach(shared, folder):
    pair = volume.Pair(folder)
    pair.create(shared, mode="writeback")
    uuid = volume.the_set(shared)["set"]
    assert shared.call("bdev_bcache_detach", name="Vol0", limit=60) is True
    entry = volume.volume(shared, "Vol0")
    assert entry["state"] == "no cache" and entry["running"] is True
    assert superblock.Superblock(pair.backing)["flags"] >> 61 & 3 == 0
    assert shared.call("bdev_bcache_attach", name="Vol0", set=uuid, limit=60) is True
    assert volume.volume(shared, "Vol0")["state"] in ("clean", "dirty")


def test_unregister_set(shared, folder):
    pair = volume.Pair(folder)
    pair.create(shared, mode="writeback")
    assert shared.call("bdev_bcache_unregister_set", set=volume.the_set(shared)["set"], limit=60) is True
    assert shared.call("bdev_bcache_get_sets") == []
    assert superblock.Superblock(pair.backing)["flags"] >> 61 & 3 == 0


def test_flash_volume(shared, folder):
    volume.Pair(folder).create(shared)
    uuid = volume.the_set(shared)["set"]
    name = shared.call("bdev_bcache_create_flash_volume", set=uuid, name="Flash0", size_mb=16, limit=60)
    assert name == "Flash0"
    entry = volume.volume(shared, "Flash0")
    assert entry["kind"] == "flash" and entry["size_bytes"] == 16 * images.MIB and entry["running"] is True
    assert refused(shared, "bdev_bcache_create_flash_volume", set=uuid, name="Flash0", size_mb=16)
    assert refused(shared, "bdev_bcache_create_flash_volume", set=uuid, name="Flash1", size_mb=0)
    assert shared.call("bdev_bcache_stop_set", set=uuid, limit=60) is True
    shared.call("bdev_bcache_register", bdev_name="cache", limit=60)
    assert volume.wait_volume(shared, "Flash0")["size_bytes"] == 16 * images.MIB


def test_flash_volume_is_resized_and_removed(shared, folder):
    volume.Pair(folder).create(shared)
    uuid = volume.the_set(shared)["set"]
    shared.call("bdev_bcache_create_flash_volume", set=uuid, name="Flash0", size_mb=16, limit=60)
    assert shared.call("bdev_bcache_resize_flash_volume", name="Flash0", size_mb=24, limit=60) is True
    (bdev,) = shared.call("bdev_get_bdevs", name="Flash0")
    assert bdev["num_blocks"] * bdev["block_size"] == 24 * images.MIB
    exported = export.Iscsi("Flash0")
    device = pattern.Pattern(folder, exported.start(shared))
    device.write(count=100, align=8, max=8)
    assert "open" in refused(shared, "bdev_bcache_resize_flash_volume", name="Flash0", size_mb=8,
                             discard_dirty=True).message
    exported.stop(shared)
    assert "discard_dirty" in refused(shared, "bdev_bcache_delete_flash_volume", name="Flash0").message
    assert "discard_dirty" in refused(shared, "bdev_bcache_resize_flash_volume", name="Flash0", size_mb=1).message
    assert shared.call("bdev_bcache_resize_flash_volume", name="Flash0", size_mb=8, discard_dirty=True,
                       limit=60) is True
    assert shared.call("bdev_bcache_delete_flash_volume", name="Flash0", discard_dirty=True, limit=60) is True
    assert "Flash0" not in volume.volumes(shared)
    assert [entry["name"] for entry in volume.the_set(shared)["known_volumes"]] == ["Vol0"]
    assert refused(shared, "bdev_bcache_delete_flash_volume", name="Vol0").code == INVALID_PARAMS


def dirty_volume(target, folder):
    """A volume with some dirty data that nobody writes back; returns its pair and its set's UUID."""
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    target.call("bdev_bcache_set_options", name="Vol0", writeback_running=False)
    exported = export.Iscsi("Vol0")
    pattern.Pattern(folder, exported.start(target)).write(count=100, align=8, max=8)
    exported.stop(target)
    return pair, volume.the_set(target)["set"]


def test_a_volume_runs_without_its_missing_set_and_takes_it_back(shared, folder):
    pair, uuid = dirty_volume(shared, folder)
    shared.call("bdev_bcache_stop_set", set=uuid, limit=60)
    refused(shared, "bdev_bcache_register", bdev_name=pair.backing_bdev)
    assert "discard_dirty" in refused(shared, "bdev_bcache_run", name="Vol0").message
    assert shared.call("bdev_bcache_run", name="Vol0", discard_dirty=True, limit=60) is True
    entry = volume.volume(shared, "Vol0")
    assert entry["running"] is True and entry["state"] == "inconsistent"
    assert superblock.Superblock(pair.backing)["flags"] >> 61 & 3 == 3
    shared.call("bdev_bcache_register", bdev_name=pair.cache_bdev, limit=60)
    assert "discard_dirty" in refused(shared, "bdev_bcache_attach", name="Vol0", set=uuid).message
    assert shared.call("bdev_bcache_attach", name="Vol0", set=uuid, discard_dirty=True, limit=60) is True
    assert volume.volume(shared, "Vol0")["state"] == "clean"


def test_dirty_data_of_a_volume_that_is_gone_are_listed_and_can_be_forgotten(shared, folder):
    _, uuid = dirty_volume(shared, folder)
    shared.call("bdev_bcache_delete", name="Vol0", limit=60)
    (known,) = volume.the_set(shared)["known_volumes"]
    assert known["attached"] is False and known["dirty_bytes"] > 0 and known["name"] == "Vol0"
    assert "discard_dirty" in refused(shared, "bdev_bcache_forget_volume", set=uuid, uuid=known["uuid"]).message
    assert shared.call("bdev_bcache_forget_volume", set=uuid, uuid=known["uuid"], discard_dirty=True,
                       limit=60) is True
    found = volume.the_set(shared)
    assert found["known_volumes"] == [] and found["dirty_bytes"] == 0


def test_options_of_errors(shared, folder):
    volume.Pair(folder).create(shared)
    found = volume.the_set(shared)
    assert found["options"]["errors"] == "unregister" and found["options"]["io_error_limit"] == 8
    assert found["io_errors"] == {"recent": 0, "reads": 0, "writes": 0}
    words = {"io_error_limit": 100, "io_error_halflife": 5000, "errors": "panic"}
    assert shared.call("bdev_bcache_set_set_options", set=found["set"], **words) is True
    assert words.items() <= volume.the_set(shared)["options"].items()
    for wrong in ({"io_error_limit": 0}, {"errors": "ignore"}, {"io_error_halflife": -1}):
        assert refused(shared, "bdev_bcache_set_set_options", set=found["set"], **wrong).code == INVALID_PARAMS


def test_statistics_count_hits_and_misses(shared, folder):
    volume.Pair(folder).create(shared)
    exported = export.Iscsi("Vol0")
    device = pattern.Pattern(folder, exported.start(shared))
    for words in ({"name": "Vol0"}, {"set": volume.the_set(shared)["set"]}):
        assert shared.call("bdev_bcache_reset_stats", **words) is True
    for _ in range(3):
        device.read(count=500, align=8, min=8, max=8, span=8 * 400)
    for words in ({"name": "Vol0"}, {"set": volume.the_set(shared)["set"]}):
        stats = shared.call("bdev_bcache_get_stats", **words)
        for window in ("total", "five_minute", "hour", "day"):
            for key in ("cache_hits", "cache_misses", "cache_hit_ratio", "cache_bypass_hits", "cache_bypass_misses",
                        "cache_miss_collisions", "bypassed_bytes"):
                assert key in stats[window], (window, key)
        total = stats["total"]
        assert total["cache_misses"] >= 200 and total["cache_hits"] >= 900, total
    assert shared.call("bdev_bcache_reset_stats", name="Vol0") is True
    assert shared.call("bdev_bcache_get_stats", name="Vol0")["total"]["cache_hits"] == 0
    exported.stop(shared)


def test_dirty_data_are_written_back_by_flush_start(shared, folder):
    pair = volume.Pair(folder)
    pair.create(shared, mode="writeback")
    exported = export.Iscsi("Vol0")
    device = pattern.Pattern(folder, exported.start(shared))
    device.write(count=500, align=8, max=64)
    volume.write_back(shared, "Vol0")
    entry = volume.volume(shared, "Vol0")
    assert entry["dirty_bytes"] == 0
    device.verify()
    exported.stop(shared)


def test_gc_runs(shared, folder):
    volume.Pair(folder).create(shared)
    assert shared.call("bdev_bcache_gc", set=volume.the_set(shared)["set"], limit=60) is True


def rpc_py(target, *arguments, expect=(0,)):
    """SPDK's own rpc.py with our plugin."""
    script = tools.spdk_dir() / "scripts" / "rpc.py"
    return tools.run("/usr/bin/env", "PYTHONPATH=%s" % (tools.ROOT / "spdk"), "PYTHONDONTWRITEBYTECODE=1", "python3",
                     script, "-s", target.socket, "--plugin", "bcache_rpc", *arguments, limit=60, expect=expect)


def test_plugin_has_every_method(shared):
    for method in [*REQUIRED, "bdev_bcache_set_module_options"]:
        assert "usage:" in rpc_py(shared, method, "--help")


def test_plugin_does_the_job(shared, folder):
    pair = volume.Pair(folder, "Plug0")
    pair.add_bdevs(shared)
    printed = rpc_py(shared, "bdev_bcache_create", "Plug0", pair.cache_bdev, pair.backing_bdev, "-m", "writeback")
    assert printed.strip() == "Plug0"
    assert '"writeback"' in rpc_py(shared, "bdev_bcache_get_bdevs", "-b", "Plug0")
    assert '"tree_depth"' in rpc_py(shared, "bdev_bcache_get_sets")
    assert '"cache_hits"' in rpc_py(shared, "bdev_bcache_get_stats", "--name", "Plug0")
    assert rpc_py(shared, "bdev_bcache_set_cache_mode", "Plug0", "none").strip() == ""
    assert "Nothing9" in rpc_py(shared, "bdev_bcache_delete", "Nothing9", expect=(1,))
    assert rpc_py(shared, "bdev_bcache_register", "Nothing9", "--when-up").strip() == ""
    assert rpc_py(shared, "bdev_bcache_set_options", "Nothing9", "writeback_percent=5", "--when-up").strip() == ""
    assert "Nothing9" in rpc_py(shared, "bdev_bcache_set_options", "Nothing9", "writeback_percent=5", expect=(1,))


def test_create_takes_what_examine_brought_up(start, folder):
    """A volume that waits, and one that runs without a cache: create does the rest."""
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    uuid = volume.volume(target, "Vol0")["uuid"]
    target.call("bdev_bcache_stop_set", set=volume.the_set(target)["set"], limit=60)
    target.call("bdev_bcache_register", bdev_name=pair.backing_bdev, limit=60)
    assert volume.volume(target, "Vol0")["running"] is False
    words = {"name": "Vol0", "cache_bdev": pair.cache_bdev, "backing_bdev": pair.backing_bdev}
    assert target.call("bdev_bcache_create", **words, limit=60) == "Vol0"
    entry = volume.wait_volume(target, "Vol0")
    assert entry["uuid"] == uuid and entry["cache_mode"] == "writeback"
    target.call("bdev_bcache_detach", name="Vol0", limit=60)
    assert target.call("bdev_bcache_create", **words, mode="writearound", limit=60) == "Vol0"
    entry = volume.volume(target, "Vol0")
    assert entry["state"] == "clean" and entry["uuid"] == uuid and entry["cache_mode"] == "writearound"
    target.stop()


def test_volumes_wait_for_a_cache_device_that_goes_and_comes_back(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    target.call("bdev_bcache_set_options", name="Vol0", stop_when_cache_set_failed="always")
    target.call("bdev_aio_delete", name=pair.cache_bdev, limit=60)
    volume.wait_until("the set gone", lambda: not target.call("bdev_bcache_get_sets"))
    assert volume.volume(target, "Vol0")["running"] is False
    volume.aio(target, pair.cache_bdev, pair.cache)
    assert volume.wait_volume(target, "Vol0")["state"] == "clean"
    target.stop()


def test_examine_brings_volumes_up_by_themselves(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    target.restart()
    assert pair.reopen(target)["cache_mode"] == "writeback"


def test_examine_can_be_switched_off(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target)
    target.stop()
    target.wait_for_rpc = True
    target.start()
    target.call("bdev_bcache_set_module_options", examine=False)
    target.call("framework_start_init", limit=60)
    pair.add_bdevs(target)
    assert volume.volumes(target) == {} and target.call("bdev_bcache_get_sets") == []
    assert refused(target, "bdev_bcache_set_module_options", examine=True)
