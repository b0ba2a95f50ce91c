"""The judge itself: blkio must find every kind of wrong sector, or its silence means nothing."""

import os
import shutil
import struct
import subprocess

import pytest

from kit import images, pattern, tools

SIZE = 8 * images.MIB


@pytest.fixture
def written(folder):
    """An image with two verified rounds on it, the second not verified yet but ended in good order."""
    data = pattern.Pattern(folder, images.sparse(folder / "a.img", SIZE))
    data.write(count=400, align=8, max=64, flush=20)
    data.verify()
    data.write(count=100, align=8, max=64, flush=20)
    return data


def first_sector(path, versions):
    """The first sector that holds one of these versions, and its bytes."""
    image = images.read(path, 0, SIZE)
    for sector in range(SIZE // images.SECTOR):
        held = image[sector * images.SECTOR:(sector + 1) * images.SECTOR]
        if struct.unpack_from("<Q", held, 16)[0] in versions:
            return sector, held
    raise AssertionError("no such version")


def found_wrong(data):
    """The verdict must be against it; returns what was said."""
    with pytest.raises(tools.CommandFailed) as caught:
        data.verify()
    assert "bad=1 " in str(caught.value)
    return str(caught.value)


def test_right_data_are_right(written):
    assert written.verify()["bad"] == 0


@pytest.mark.parametrize("damage, words", [
    ("zeros", "found zeros"), ("foreign", "foreign data"), ("torn", "torn sector"), ("misplaced", "another sector"),
    ("older", "found a version"), ("future", "found a version"),
])
def test_every_kind_of_wrong_sector_is_found(written, folder, damage, words):
    sector, held = first_sector(written.device, range(401, 501))
    if damage in ("older", "future"):
        # what the tool itself would write there with another version
        other = images.sparse(folder / "other.img", SIZE)
        tools.run(written.tool, "write", other, "count=1", "first=%d" % (7 if damage == "older" else 100000),
                  "at=%d" % sector, "span=1", "min=1", "max=1", "align=1", "log=/dev/null")
        wrong = images.read(other, sector * images.SECTOR, images.SECTOR)
    else:
        wrong = {"zeros": bytes(images.SECTOR), "foreign": b"x" * images.SECTOR,
                 "torn": held[:256] + bytes(256),
                 "misplaced": images.read(written.device, (sector + 1) * images.SECTOR, images.SECTOR)}[damage]
    images.patch(written.device, sector * images.SECTOR, wrong)
    assert words in found_wrong(written)


def test_unflushed_writes_may_be_lost_and_flushed_ones_not(written, folder):
    """With the log cut after its first flush, the later writes may or may not be there; the earlier ones must be."""
    lines = written.log.read_text().splitlines(keepends=True)
    flush = next(number for number, line in enumerate(lines) if line.startswith("@flush"))
    covered = int(lines[flush].split()[1])
    written.log.write_text("".join(lines[:flush + 1]) + "@flush 9")  # a last line that was cut off does not count
    image, state = folder / "before.img", folder / "before.state"
    images.copy(written.device, image)
    shutil.copy(written.state, state)
    log = written.log
    assert written.verify()["newer"] > 0
    # the same on a device that lost one sector of a write that the flush had covered
    sector, _ = first_sector(image, range(401, 401 + covered))
    images.patch(image, sector * images.SECTOR, bytes(images.SECTOR))
    text = tools.run(written.tool, "verify", image, "state=%s" % state, "log=%s" % log, expect=(1,))
    assert "sector %d: want version" % sector in text and "bad=1 " in text


def fake_pages(folder, have, free, reserved=0):
    """A folder like the kernel's of 2 MiB huge pages, in which asking for more gives none."""
    for name, count in (("nr", have), ("free", free), ("resv", reserved)):
        (folder / (name + "_hugepages")).write_text("%d\n" % count)
    return folder


def hugepages(folder, pages, expect=0):
    """Runs spdk/hugepages.sh on such a folder; returns what it said."""
    done = subprocess.run([tools.ROOT / "spdk" / "hugepages.sh", str(pages)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "HUGEPAGES_SYSFS": str(folder)}, check=False)
    assert done.returncode == expect, done
    return done.stderr


def test_free_huge_pages_are_counted_not_those_that_others_hold(folder):
    fake = fake_pages(folder, 3000, 900, reserved=100)
    assert hugepages(fake, 800) == "" and (fake / "nr_hugepages").read_text() == "3000\n"
    # reserved ones are as good as taken
    assert "800 of 3010" in hugepages(fake, 810) and (fake / "nr_hugepages").read_text() == "3010\n"
    fake = fake_pages(folder, 3000, 5)
    said = hugepages(fake, 300, expect=1)
    assert "only 5 of" in said and "end the programs" in said and "hugepages.sh 300" in said


def test_what_huge_pages_are_missing_is_said_before_the_target_starts(folder):
    """A terabyte is never free: SPDK fails in its own words, behind ours."""
    done = subprocess.run([tools.built("bcache_tgt"), "-s", "1000000", "-r", folder / "s", "--huge-unlink", "--no-pci"],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    first = done.stderr.splitlines()[0]
    assert "1000000 MiB of huge pages are needed" in first and "spdk/hugepages.sh 500000" in first, done.stderr
