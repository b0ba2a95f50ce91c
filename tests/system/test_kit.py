"""The judge itself: blkio must find every kind of wrong sector, or its silence means nothing."""

import shutil
import struct

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
