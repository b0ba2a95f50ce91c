"""The volume over iSCSI, as libiscsi's tools and its conformance suite see it.

The suite also finds what SPDK's iSCSI target itself does otherwise, whatever bdev is behind it. So every group runs
on a malloc bdev too, and the volume must pass all that the malloc bdev passes. Each of the two has a target of its own:
the SCSI layer of SPDK 20.07 loses one of the target's 65535 I/O descriptors for every range of an UNMAP but the last,
the group Unmap costs 32640 of them, and a target that has none left corrupts its heap when it tries again.
"""

import re
import signal
import socket
import struct
import time
import urllib.parse

import pytest

from kit import export, tools, volume
from kit.target import Target

CONFORMANCE = ["Inquiry", "Mandatory", "ModeSense6", "Prefetch10", "Read6", "Read10", "Read12", "Read16",
               "ReadCapacity10", "ReadCapacity16", "TestUnitReady", "Unmap", "Verify10", "Write10", "Write12",
               "Write16", "WriteSame10", "WriteSame16", "WriteVerify10"]
GROUP_SECONDS = 90  # newer releases of SPDK have WRITE SAME, and its groups write the whole disk some hundred times over
TOOL_SECONDS = 20
NOP_SECONDS = 1  # how often the target looks for connections that want a NOP-In


@pytest.fixture(scope="module")
def urls(shared_holder):
    """The URLs of an exported volume and of an exported malloc bdev, each on a target of its own."""
    folder = shared_holder["folder"]
    target = shared_holder["target"] = Target(folder, name="shared", memory_mb=512).start()
    volume.Pair(folder, "Disk0").create(target, mode="writeback")
    plain = Target(folder, name="plain", memory_mb=512)
    try:
        plain.start()
        volume.malloc(plain, "Plain0", 64)
        yield export.Iscsi("Disk0").start(target), export.Iscsi("Plain0").start(plain)
    finally:
        plain.kill()


def test_inquiry(urls):
    text = tools.run(tools.program("iscsi-inq"), urls[0], limit=TOOL_SECONDS)
    assert "DIRECT_ACCESS" in text and "CONNECTED" in text


def login_request(iqn):
    """A login without authentication that asks for the full feature phase at once (RFC 7143, 11.12)."""
    keys = b"InitiatorName=iqn.2016-06.io.spdk:login\0SessionType=Normal\0TargetName=%s\0" % iqn.encode()
    head = struct.pack(">BBxxxBH6sHIHxxII16x", 0x43, 0x87, 0, len(keys), b"\x80\0\0\0\0\x01", 0, 1, 0, 1, 0)
    return head + keys + b"\0" * (-len(keys) % 4)


def test_a_login_as_the_timer_of_nops_fires(start):
    """That hand-over of a connection is where unmended SPDK 20.07 loses it, and never ends then."""
    target = start()
    volume.malloc(target, "Plain0", 64)
    url = urllib.parse.urlparse(export.Iscsi("Plain0").start(target))
    with socket.create_connection((url.hostname, url.port), 10) as connection:
        time.sleep(0.2)  # the target takes the connection
        target.process.send_signal(signal.SIGSTOP)
        connection.sendall(login_request(url.path.split("/")[1]))
        time.sleep(NOP_SECONDS + 0.2)  # both have come when it goes on
        target.process.send_signal(signal.SIGCONT)
        response = connection.recv(48, socket.MSG_WAITALL)
        assert response[0] == 0x23 and response[36:38] == b"\0\0", response
    target.stop()


def test_capacity(urls, shared_holder):
    text = tools.run(tools.program("iscsi-readcapacity16"), urls[0], limit=TOOL_SECONDS)
    size = volume.volume(shared_holder["target"], "Disk0")["size_bytes"]
    assert "Total size:%d" % size in text


def verdicts(url, group):
    """Runs a group of the suite: test name to "passed" or "FAILED"."""
    text = tools.run(tools.program("iscsi-test-cu"), "--dataloss", "--test=SCSI.%s" % group, url,
                     limit=GROUP_SECONDS, expect=None)
    found = {}
    for part in text.split("  Test: ")[1:]:
        name = part.split(" ...")[0]
        found[name] = re.search(r"(passed|FAILED)\s*$", part, re.MULTILINE).group(1)
    assert found, text
    return found


@pytest.mark.limit(240)
@pytest.mark.parametrize("group", CONFORMANCE)
def test_conformance(urls, group):
    ours, plain = verdicts(urls[0], group), verdicts(urls[1], group)
    assert ours.keys() == plain.keys()
    worse = [name for name in ours if ours[name] == "FAILED" and plain[name] == "passed"]
    assert not worse, worse


def test_target_lives_and_serves_after_the_suite(urls, folder, shared_holder):
    """What the suite wrote is not ours to know; that every write and flush is answered is."""
    log = folder / "after.log"
    tools.run(tools.compile_blkio(static=False), "write", urls[0], "count=2000", "align=8", "max=256", "flush=50",
              "log=%s" % log, limit=60)
    assert "@done 2000\n" in log.read_text()
    assert shared_holder["target"].running()
