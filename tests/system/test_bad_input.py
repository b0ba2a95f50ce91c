"""Bad input gets a clear error, and nothing is lost: what is refused leaves every byte as it was."""

import hashlib
import re

import pytest

from kit import export, images, pattern, superblock, volume
from kit.rpc import RpcClient, RpcError
from test_rpc import INVALID_PARAMS, refused


def digest(path):
    """Of an image's whole contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def pair(shared, folder):
    """Two blank images as bdevs."""
    made = volume.Pair(folder)
    made.add_bdevs(shared)
    return made


def create(target, pair, **options):
    """bdev_bcache_create on a pair whose bdevs are there; options replace what it would give."""
    params = dict({"name": pair.name, "cache_bdev": pair.cache_bdev, "backing_bdev": pair.backing_bdev}, **options)
    return target.call("bdev_bcache_create", limit=60, **params)


def create_refused(target, pair, **options):
    """Create must be refused, without a trace on the images or in the lists; returns the error."""
    before = digest(pair.cache), digest(pair.backing)
    with pytest.raises(RpcError) as caught:
        create(target, pair, **options)
    assert (digest(pair.cache), digest(pair.backing)) == before
    assert volume.volumes(target) == {} and target.call("bdev_bcache_get_sets") == []
    return caught.value


@pytest.mark.parametrize("options", [
    {"mode": "fast"}, {"mode": ""}, {"bucket_size_kb": 0}, {"bucket_size_kb": 3}, {"bucket_size_kb": 48},
    {"bucket_size_kb": 1 << 30}, {"block_size": 0}, {"block_size": 1000}, {"block_size": 256}, {"block_size": 8192},
    {"name": ""},
], ids=str)
def test_values_out_of_range(shared, pair, options):
    error = create_refused(shared, pair, **options)
    assert error.code == INVALID_PARAMS
    (key,) = options
    assert key in error.message


@pytest.mark.parametrize("options", [{"bucket_size_kb": -4}, {"bucket_size_kb": "512"}, {"force": "yes"}], ids=str)
def test_values_of_another_type(shared, pair, options):
    assert create_refused(shared, pair, **options).code == INVALID_PARAMS


def test_name_too_long(shared, pair):
    assert "32" in create_refused(shared, pair, name="n" * 33).message
    assert create(shared, pair, name="n" * 32) == "n" * 32


def test_name_taken_by_another_bdev(shared, pair):
    assert pair.cache_bdev in create_refused(shared, pair, name=pair.cache_bdev).message


def test_name_taken_is_found_out_before_anything_is_formatted(shared, folder, pair):
    volume.aio(shared, "Taken", images.sparse(folder / "taken.img", 64 * images.MIB))
    assert "Taken" in create_refused(shared, pair, name="Taken").message
    assert create(shared, pair) == pair.name
    uuid = volume.the_set(shared)["set"]
    assert "Taken" in refused(shared, "bdev_bcache_create_flash_volume", set=uuid, name="Taken", size_mb=1).message


def test_name_taken_by_another_volume(shared, folder, pair):
    create(shared, pair)
    volume.aio(shared, "other", images.sparse(folder / "other.img", 64 * images.MIB))
    error = refused(shared, "bdev_bcache_create", name=pair.name, cache_bdev=pair.cache_bdev, backing_bdev="other")
    assert pair.name in error.message
    assert images.read(folder / "other.img", 0, images.MIB) == bytes(images.MIB)


def test_same_device_twice(shared, pair):
    assert pair.cache_bdev in create_refused(shared, pair, backing_bdev=pair.cache_bdev).message


def test_device_in_use(shared, folder, pair):
    create(shared, pair)
    volume.aio(shared, "other", images.sparse(folder / "other.img", 64 * images.MIB))
    for cache, backing in (("other", pair.backing_bdev), ("other", pair.cache_bdev), (pair.backing_bdev, "other")):
        for force in (False, True):
            error = refused(shared, "bdev_bcache_create", name="Vol9", cache_bdev=cache, backing_bdev=backing,
                            force=force)
            assert pair.cache_bdev in error.message or pair.backing_bdev in error.message
    assert images.read(folder / "other.img", 0, images.MIB) == bytes(images.MIB)


@pytest.mark.parametrize("which, offset", [("cache", 0), ("cache", images.MIB - 1), ("backing", 0),
                                           ("backing", 1080), ("backing", images.MIB - 1)])
def test_other_data_are_refused_without_force(shared, folder, which, offset):
    pair = volume.Pair(folder)
    path = getattr(pair, which)
    images.patch(path, offset, b"\x53")
    pair.add_bdevs(shared)
    error = create_refused(shared, pair)
    assert path.stem in error.message and "force" in error.message
    assert create(shared, pair, force=True) == pair.name


@pytest.mark.parametrize("cache_kb, backing_kb, word", [(512, 65536, "cache"), (4, 65536, "cache"),
                                                        (65536, 4, "back")])
def test_too_small_devices(shared, folder, cache_kb, backing_kb, word):
    pair = volume.Pair(folder)
    images.sparse(pair.cache, cache_kb * 1024)
    images.sparse(pair.backing, backing_kb * 1024)
    pair.add_bdevs(shared)
    error = create_refused(shared, pair)
    assert "small" in error.message and word in error.message


def test_block_size_under_the_devices(shared, folder):
    pair = volume.Pair(folder, block_size=4096)
    pair.add_bdevs(shared)
    assert "block" in create_refused(shared, pair, block_size=512).message


def test_block_size_of_the_set_over_the_backing_devices(shared, folder):
    fine, coarse = volume.Pair(folder, "Fine", tag="0"), volume.Pair(folder, "Coarse", tag="1")
    fine.create(shared, block_size=512)
    coarse.create(shared, block_size=4096)
    shared.call("bdev_bcache_detach", name="Fine", limit=60)
    before = digest(fine.backing)
    error = refused(shared, "bdev_bcache_attach", name="Fine", set=volume.volume(shared, "Coarse")["set"])
    assert "block" in error.message
    assert digest(fine.backing) == before
    assert volume.volume(shared, "Fine")["state"] == "no cache"


def test_bcache_device_of_another_set_is_refused(shared, folder):
    first, second = volume.Pair(folder, "Vol0", tag="0"), volume.Pair(folder, "Vol1", tag="1")
    first.create(shared)
    second.create(shared)
    for name in ("Vol0", "Vol1"):
        shared.call("bdev_bcache_stop_set", set=volume.volume(shared, name)["set"], limit=60)
    before = digest(first.cache), digest(second.backing)
    error = refused(shared, "bdev_bcache_create", name="Vol1", cache_bdev=first.cache_bdev,
                    backing_bdev=second.backing_bdev)
    assert second.backing_bdev in error.message or first.cache_bdev in error.message
    assert (digest(first.cache), digest(second.backing)) == before


def test_unknown_options(shared, pair):
    create(shared, pair)
    uuid = volume.the_set(shared)["set"]
    assert refused(shared, "bdev_bcache_set_options", name=pair.name, no_such_knob=1).code == INVALID_PARAMS
    assert refused(shared, "bdev_bcache_set_set_options", set=uuid, no_such_knob=1).code == INVALID_PARAMS
    assert refused(shared, "bdev_bcache_set_cache_mode", name=pair.name, mode="fast").code == INVALID_PARAMS
    assert refused(shared, "bdev_bcache_get_stats", name=pair.name, set=uuid).code == INVALID_PARAMS
    assert refused(shared, "bdev_bcache_get_stats").code == INVALID_PARAMS


@pytest.mark.parametrize("params, word", [
    ('["Vol0", "cache", "back"]', "object"), ("[]", "object"), ('"Vol0"', ""), ("7", ""),
    ('{"name": "Vol0", "name": "Vol0"}', "name is given twice"),
    ('{"name": "Vol0", "x": [{"y": 1, "y": 2}]}', "y is given twice"),
], ids=str)
def test_positional_and_repeated_parameters_are_refused(shared, params, word):
    """As text, because no dict has a key twice. SPDK's own parser refuses what is neither object nor array."""
    for method in ("bdev_bcache_detach", "bdev_bcache_create", "bdev_bcache_get_sets"):
        client = RpcClient(shared.socket)
        client.socket.sendall(b'{"jsonrpc": "2.0", "id": 7, "method": "%s", "params": %s}'
                              % (method.encode(), params.encode()))
        error = client.receive(7)["error"]
        client.close()
        assert word in error["message"], error
        assert error["code"] == INVALID_PARAMS or not word


def test_nothing_waits_for_names_that_nothing_can_have(shared, pair):
    for method, words in (
            ("bdev_bcache_set_options", {"name": "n" * 33, "writeback_percent": 5}),
            ("bdev_bcache_set_options", {"name": "a b", "writeback_percent": 5}),
            ("bdev_bcache_set_options", {"name": "", "writeback_percent": 5}),
            ("bdev_bcache_set_set_options", {"set": "00000000-0000-0000-0000-000000000000", "journal_delay_ms": 5}),
            ("bdev_bcache_set_set_options", {"set": "Vol0", "journal_delay_ms": 5}),
            ("bdev_bcache_register", {"bdev_name": ""})):
        assert refused(shared, method, **words, when_up=True).code == INVALID_PARAMS
    saved = {call["method"] for call in shared.call("framework_get_config", name="bdev")}
    assert not saved & {"bdev_bcache_set_options", "bdev_bcache_set_set_options", "bdev_bcache_register"}, saved


# what is changed on a cache device, and a word that the message must have
CACHE_DAMAGE = [
    ({"magic": b"\x01" * 16}, "magic|bcache superblock"), ({"offset": 16}, "sector 16|offset"),
    ({"version": 7}, "version"),
    ({"version": 5, "feature_incompat": 1 << 40}, "feature"), ({"uuid": bytes(16)}, "uuid|UUID"),
    ({"set_uuid": bytes(16)}, "set"), ({"block_size": 3}, "block"), ({"block_size": 16}, "block"),
    ({"bucket_size": 24}, "bucket"), ({"bucket_size": 4}, "bucket"), ({"nbuckets": 100}, "buckets"),
    ({"nbuckets": 1 << 20}, "small"), ({"nr_in_set": 0}, "set"), ({"nr_in_set": 9}, "set"),
    ({"nr_this_dev": 1}, "set"), ({"first_bucket": 0}, "first bucket|bucket 0"), ({"keys": 257}, "journal"),
    ({"journal1": 9}, "journal"), ({"journal0": 1 << 30}, "journal"),
]


def test_every_damage_of_a_superblock_has_its_own_message(shared, folder):
    """Each field in turn, its checksum right; then the checksum itself. Messages tell them apart."""
    golden = images.Golden("clean-dirty", folder)
    damages = [(fields, word, True) for fields, word in CACHE_DAMAGE] + [({"csum": 1}, "checksum", False)]
    messages = {}
    for fields, word, right in damages:
        path = images.copy(golden.cache, folder / "damaged.img")
        block = superblock.Superblock(path)
        for name, value in fields.items():
            block[name] = value
        block.write(right_checksum=right)
        before = digest(path)
        volume.aio(shared, "damaged", path)
        error = refused(shared, "bdev_bcache_register", bdev_name="damaged")
        assert re.search(word, error.message), (fields, error.message)
        assert digest(path) == before, fields
        messages.setdefault(error.message, []).append(fields)
        shared.call("bdev_aio_delete", name="damaged")
        path.unlink()
    twice = {message: fields for message, fields in messages.items() if len(fields) > 1}
    assert not twice, twice


def test_a_blank_device_is_no_bcache_device(shared, pair):
    assert refused(shared, "bdev_bcache_register", bdev_name=pair.cache_bdev)
    assert digest(pair.cache) == hashlib.sha256(bytes(64 * images.MIB)).hexdigest()


def test_damaged_superblocks_do_not_disturb_examine(start, folder):
    golden = images.Golden("clean-dirty", folder)
    superblock.change(golden.cache, nbuckets=1 << 20)
    target = start()
    volume.aio(target, "c", golden.cache)
    volume.aio(target, "b", golden.backing[0])
    assert target.call("bdev_bcache_get_sets") == []
    assert not any(entry["running"] for entry in volume.volumes(target).values())
    assert {entry["name"] for entry in target.call("bdev_get_bdevs")} == {"c", "b"}
    target.stop()


def test_dirty_backing_without_its_cache_is_not_started(shared, folder):
    golden = images.Golden("clean-dirty", folder)
    uuid = superblock.Superblock(golden.cache).set_uuid()
    before = digest(golden.backing[0])
    volume.aio(shared, "b", golden.backing[0])
    said = ""
    try:
        shared.call("bdev_bcache_register", bdev_name="b", limit=60)
    except RpcError as error:
        said = error.message
    assert not any(entry["running"] for entry in volume.volumes(shared).values())
    assert {entry["name"] for entry in shared.call("bdev_get_bdevs")} == {"b"}
    assert uuid in said or uuid in shared.log_end(20), "the message must name the set that is missing"
    assert digest(golden.backing[0]) == before


def test_dirty_data_are_destroyed_only_when_that_is_said(shared, folder):
    golden = images.Golden("clean-dirty", folder)
    pair = volume.Pair(folder)
    volume.aio(shared, "cache", pair.cache)
    volume.aio(shared, "dirty", golden.backing[0])
    before = digest(golden.backing[0])
    words = {"name": "Vol0", "cache_bdev": "cache", "backing_bdev": "dirty"}
    refused(shared, "bdev_bcache_create", **words)
    assert "discard_dirty" in refused(shared, "bdev_bcache_create", **words, force=True).message
    refused(shared, "bdev_bcache_create", **words, discard_dirty=True)
    assert digest(golden.backing[0]) == before
    assert shared.call("bdev_bcache_create", **words, force=True, discard_dirty=True, limit=60) == "Vol0"


def test_dirty_data_of_another_set_do_not_come_along(shared, folder, pair):
    """A volume that waits for its set, dirty, cannot be attached to another one."""
    golden = images.Golden("clean-dirty", folder)
    create(shared, pair)
    volume.aio(shared, "dirty", golden.backing[0])
    before = digest(golden.backing[0])
    refused(shared, "bdev_bcache_register", bdev_name="dirty")
    (waiting,) = [entry for entry in volume.volumes(shared).values() if entry["backing_bdev"] == "dirty"]
    assert waiting["running"] is False and waiting["state"] == "dirty"
    error = refused(shared, "bdev_bcache_attach", name=waiting["name"], set=volume.the_set(shared)["set"])
    assert superblock.Superblock(golden.cache).set_uuid() in error.message
    assert digest(golden.backing[0]) == before


def test_dirty_cache_is_not_reformatted_by_force(shared, folder):
    """With force a new backing device may join the set that is there; its dirty data stay, and come up right."""
    golden = images.Golden("clean-dirty", folder)
    pair = volume.Pair(folder)
    volume.aio(shared, "dirty", golden.cache)
    volume.aio(shared, "back", pair.backing, 4096)
    try:
        shared.call("bdev_bcache_create", name="Vol0", cache_bdev="dirty", backing_bdev="back", force=True, limit=60)
    except RpcError:
        shared.call("bdev_bcache_register", bdev_name="dirty", limit=60)
    volume.aio(shared, "b", golden.backing[0])
    shared.call("bdev_bcache_register", bdev_name="b", limit=60)
    (entry,) = [entry for entry in volume.volumes(shared).values() if entry["backing_bdev"] == "b"]
    assert entry["running"] and entry["dirty_bytes"] > 0
    exported = export.Iscsi(entry["name"])
    assert pattern.golden(exported.start(shared), golden.expect[0])["bad"] == 0
    exported.stop(shared)


def test_journal_gap_is_corruption(shared, folder):
    golden = images.Golden("power-cut", folder)
    seq = superblock.cut_journal(golden.cache)
    before = digest(golden.cache), digest(golden.backing[0])
    volume.aio(shared, "c", golden.cache)
    volume.aio(shared, "b", golden.backing[0])
    error = refused(shared, "bdev_bcache_register", bdev_name="c")
    assert "journal" in error.message and str(seq) in error.message
    try:
        shared.call("bdev_bcache_register", bdev_name="b", limit=60)
    except RpcError:
        pass
    assert not any(entry["running"] for entry in volume.volumes(shared).values())
    assert (digest(golden.cache), digest(golden.backing[0])) == before


def test_a_set_that_cannot_be_opened_is_given_up_only_when_that_is_said(shared, folder):
    golden = images.Golden("power-cut", folder)
    superblock.cut_journal(golden.cache)
    before = digest(golden.cache), digest(golden.backing[0])
    volume.aio(shared, "c", golden.cache)
    volume.aio(shared, "b", golden.backing[0])
    words = {"name": "Vol0", "cache_bdev": "c", "backing_bdev": "b"}
    for more in ({}, {"force": True}, {"discard_dirty": True}):
        assert "journal" in refused(shared, "bdev_bcache_create", **words, **more).message
    assert (digest(golden.cache), digest(golden.backing[0])) == before
    assert shared.call("bdev_bcache_create", **words, force=True, discard_dirty=True, limit=60) == "Vol0"
    assert volume.volume(shared, "Vol0")["dirty_bytes"] == 0
