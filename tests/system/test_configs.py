"""Every configuration of configs/ starts, serves, and comes back; what the target saves is enough to start again."""

import json

import pytest

from kit import export, images, pattern, tools, volume
from kit.target import Target

CONFIGS = sorted(path.name for path in (tools.ROOT / "configs").glob("*.json"))


def methods(config):
    """Every (method, params) of a configuration."""
    for subsystem in config["subsystems"]:
        for entry in subsystem["config"] or []:
            yield entry["method"], entry.get("params", {})


def localise(config, folder, drives):
    """Puts files into the folder and SPDK's TCP initiator in the place of PCIe drives; returns the changed copy."""
    config = json.loads(json.dumps(config))
    drive = 0
    for method, params in methods(config):
        if method == "bdev_aio_create":
            path = folder / params["filename"].replace("/", "_")
            if not path.exists():
                images.sparse(path, 96 * images.MIB)
            params["filename"] = str(path)
        elif method == "bdev_nvme_attach_controller" and params["trtype"] == "PCIe":
            name = params["name"]
            params.clear()
            params.update(drives[drive].address(), name=name)
            drive += 1
    return config


@pytest.fixture
def drives(start):
    """Two NVMe/TCP subsystems of a second target process, which stand in for drives."""
    target = start(name="drives", cpumask="0x2", memory_mb=512)
    exports = []
    for number in range(2):
        volume.malloc(target, "Malloc%d" % number, 96 if number else 64)
        exports.append(export.NvmeTcp("Malloc%d" % number, name="drive%d" % number))
    exports[0].start(target)
    exports[1].start(target, transport=False)
    return exports


def expected_volumes(config):
    """The volumes a configuration creates: name to mode."""
    return {params["name"]: params.get("mode", "writethrough")
            for method, params in methods(config) if method == "bdev_bcache_create"}


def test_there_are_the_three_configurations():
    assert {"malloc_pair.json", "nvme_over_aio.json", "nvme_over_nvme.json"} <= set(CONFIGS)


@pytest.mark.limit(180)
@pytest.mark.parametrize("name", CONFIGS)
def test_config_starts_and_serves(start, folder, drives, name):
    config = json.loads((tools.ROOT / "configs" / name).read_text())
    path = folder / name
    path.write_text(json.dumps(localise(config, folder, drives)))
    target = start(config=path, memory_mb=1024, cpumask="0x1")
    expected = expected_volumes(config)
    assert expected
    persistent = "malloc" not in name
    for number, (vol, mode) in enumerate(expected.items()):
        assert volume.wait_volume(target, vol)["cache_mode"] == mode
        exported = export.Iscsi(vol)
        data = pattern.Pattern(folder, exported.start(target, tag=100 + number))
        data.write(count=800, align=8, max=256, flush=50, reads=20)
        data.verify()
        if persistent:
            target.restart(kill=True)
            volume.wait_volume(target, vol)
            exported.start(target, tag=100 + number)
            data.verify()
    target.stop()


def test_saved_configuration_brings_everything_back(start, folder):
    """What a running target saves, a new one loads: bdevs, options that are not on disk, and the volumes with them."""
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    uuid = volume.the_set(target)["set"]
    target.call("bdev_bcache_set_options", name="Vol0", writeback_running=False, writeback_percent=7,
                io_error_limit=9)
    options = {"journal_delay_ms": 50, "io_error_limit": 20, "io_error_halflife": 1000, "errors": "panic",
               "copy_gc_enabled": False}
    target.call("bdev_bcache_set_set_options", set=uuid, **options)
    before = volume.volume(target, "Vol0")
    assert before["options"] == {"writeback_running": False, "writeback_percent": 7, "io_error_limit": 9, "io_disable": False,
                                 "stop_when_cache_set_failed": "auto", "cache_missing_io": "wait",
                                 "cache_missing_timeout_s": 600}
    saved = {"subsystems": [{"subsystem": "bdev", "config": target.call("framework_get_config", name="bdev")}]}
    for method, _ in methods(saved):
        assert method != "bdev_bcache_register", "examine brings up what is on disk"
    path = folder / "saved.json"
    path.write_text(json.dumps(saved))
    target.stop()
    again = Target(folder, name="again", config=path).start()
    try:
        after = volume.wait_volume(again, "Vol0")
        assert {key: after[key] for key in ("uuid", "set", "cache_mode", "size_bytes", "options")} == \
            {key: before[key] for key in ("uuid", "set", "cache_mode", "size_bytes", "options")}
        assert volume.the_set(again)["options"] == options
        assert again.call("framework_get_config", name="bdev") == saved["subsystems"][0]["config"]
        again.stop()
    finally:
        again.kill()


def test_saved_configuration_without_examine_registers_what_ran(start, folder):
    """The bdevs are made after the module's own calls: those wait for them."""
    target = start(wait_for_rpc=True)
    target.call("bdev_bcache_set_module_options", examine=False)
    target.call("framework_start_init", limit=60)
    volume.Pair(folder).create(target, mode="writeback")
    before = volume.volume(target, "Vol0")
    saved = {"subsystems": [{"subsystem": "bdev", "config": target.call("framework_get_config", name="bdev")}]}
    registered = [params for method, params in methods(saved) if method == "bdev_bcache_register"]
    assert registered == [{"bdev_name": bdev, "when_up": True} for bdev in ("cache", "back")]
    path = folder / "saved.json"
    path.write_text(json.dumps(saved))
    target.stop()
    again = Target(folder, name="again", config=path).start()
    try:
        assert volume.wait_volume(again, "Vol0")["uuid"] == before["uuid"]
        assert again.call("framework_get_config", name="bdev") == saved["subsystems"][0]["config"]
        again.stop()
    finally:
        again.kill()
