"""Disk images: sparse files, and the golden fixtures that Linux's bcache left."""

import os
import pathlib
import shutil
import subprocess

from . import tools

MIB = 1 << 20
SECTOR = 512
SUPERBLOCK_BYTE = 8 * SECTOR
FIXTURES = tools.ROOT / "tests" / "fixtures"


def sparse(path, size):
    """Makes a sparse file of `size` bytes, in place of what was there; returns its path."""
    path = pathlib.Path(path)
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def copy(source, path):
    """A sparse copy of an image."""
    tools.run("cp", "--sparse=always", source, path)
    return pathlib.Path(path)


def patch(path, offset, data):
    """Overwrites bytes of an image."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path, offset, length):
    """Bytes of an image."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


class Golden:
    """A fixture unpacked into a folder: `cache`, `backing` (a list), `expect` (volume number to file of versions)."""

    def __init__(self, name, folder):
        source = FIXTURES / name
        if not source.is_dir():
            raise tools.Missing("the fixture %s is not there" % source)
        self.name = name
        self.folder = pathlib.Path(folder) / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for packed in sorted(source.glob("*.zst")):
            self.unpack(packed, self.folder / packed.stem)
        self.cache = self.folder / "cache.img"
        self.backing = sorted(self.folder.glob("back*.img"))
        self.expect = {int(path.name[len("expect"):]): path for path in self.folder.glob("expect*")}

    @staticmethod
    def unpack(packed, path):
        """Unpacks a .zst into a sparse file."""
        with open(path, "wb") as out:
            subprocess.run([tools.program("zstd"), "-q", "-d", "--sparse", "-f", str(packed), "-o", str(path)],
                           check=True, stdout=out, timeout=60)
