"""A start with the configuration that a target saved finds its volumes every time, and waits for no dead disk for long."""

import json
import time

import pytest

from kit import export, images, tools, volume


@pytest.mark.parametrize("kind", ["nvmf", "iscsi", "vhost"])
def test_an_export_finds_its_volume(start, folder, kind):
    target = start()
    volume.Pair(folder).create(target, mode="writeback")
    # a cache that comes later in the list of bdevs than the volume
    volume.aio(target, "late", images.sparse(folder / "late.img", 48 * images.MIB))
    export.KINDS[kind]("Vol0").start(target)
    target.save_config(folder / "saved.json")
    target.config = folder / "saved.json"
    for kill in (True, False, True):
        target.restart(kill=kill)
        assert export.exported(target, kind) == ["Vol0"]
    target.stop()


def test_a_dead_disk_keeps_no_other_export_down(start, folder):
    target = start()
    pairs = [volume.Pair(folder, name="Vol%d" % number, tag=str(number)) for number in range(3)]
    for number, pair in enumerate(pairs):
        pair.create(target)
        export.Iscsi(pair.name).start(target, tag=number + 1)
    saved = target.save_config(folder / "saved.json")
    target.stop()
    # the first disks are blank now, and their exports cannot be made
    for pair in pairs[:2]:
        pair.backing.write_bytes(bytes(images.MIB))
    bdevs = [entry["config"] for entry in saved["subsystems"] if entry["subsystem"] == "bdev"]
    target.config = folder / "bdevs.json"
    target.config.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": bdevs[0]}]}))
    began = time.monotonic()
    target.start()
    assert time.monotonic() - began < 25, "dead disks are waited for together"
    assert volume.volume(target, "Vol2")["running"] is True
    for name in ("Vol0", "Vol1"):
        entry = volume.volume(target, name)
        assert entry["running"] is False and entry["absent"] is True, entry
    target.stop()


def test_another_application_finds_the_volume(start, folder):
    """bdevperf looks for its bdev when the configuration has been loaded."""
    target = start()
    volume.Pair(folder).create(target, mode="writeback")
    bdevs = {"subsystem": "bdev", "config": target.call("framework_get_config", name="bdev")}
    path = folder / "bdevs.json"
    path.write_text(json.dumps({"subsystems": [bdevs]}))
    target.stop()
    for _ in range(2):
        out = tools.run(tools.built("bdevperf"), "--json", path, "-s", "512", "-q", "1", "-o", "4096", "-t", "1", "-w",
                        "read", "-T", "Vol0", "--huge-unlink", limit=60)
        assert "Vol0" in out, out
