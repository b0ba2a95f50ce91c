"""The volume over NVMe/TCP: to SPDK's own initiator in a second process, and to Linux's in a guest."""

import pytest

from kit import export, guest, pattern, perf, volume


def test_spdk_initiator(start, folder):
    target = start(cpumask="0x1")
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    exported = export.NvmeTcp(pair.name)
    exported.start(target)
    config = perf.bdev_config(("bdev_nvme_attach_controller", dict(exported.address(), name="Remote")))
    iops, _ = perf.run(folder, config, perf.workload("Remoten1", "verify", 3, depth=16), cpumask="0x2")
    assert iops > 0
    assert volume.volume(target, pair.name)["dirty_bytes"] > 0
    target.stop()


@pytest.mark.limit(240)
def test_linux_initiator_then_iscsi(start, folder):
    target = start()
    pair = volume.Pair(folder)
    pair.create(target, mode="writeback")
    exported = export.NvmeTcp(pair.name)
    exported.start(target)
    script = """
    echo "transport=tcp,traddr=10.0.2.2,trsvcid={port},nqn={nqn}" > /dev/nvme-fabrics || exit 1
    n=0; while [ ! -b /dev/nvme0n1 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
    blkio write /dev/nvme0n1 count=800 align=8 max=64 depth=8 flush=20 reads=20
    """.format(port=exported.port, nqn=exported.nqn)
    console = guest.run(folder, script, network=True, limit=150)
    target.restart(kill=True)
    pair.reopen(target)
    data = pattern.Pattern(folder, export.Iscsi(pair.name).start(target))
    data.adopt_log(guest.log_of(console), 800)
    data.verify()
