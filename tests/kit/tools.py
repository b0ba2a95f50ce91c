"""External programs: where they are, how they are run, and our own blkio, compiled when it is first needed."""

import hashlib
import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLKIO_SOURCES = ROOT / "tests" / "kit" / "blkio"
# dev_iscsi.c needs libiscsi, which the guest's static build does without
BLKIO_COMMON = ("blkio.c", "write.c", "read.c", "model.c", "pattern.c", "dev_file.c")
PACKAGES = {
    "cc": "gcc", "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio",
    "depmod": "kmod", "modprobe": "kmod", "zstd": "zstd", "iscsi-inq": "libiscsi-bin",
    "iscsi-readcapacity16": "libiscsi-bin", "iscsi-test-cu": "libiscsi-bin", "make-bcache": "bcache-tools",
    "bcache-super-show": "bcache-tools",
}


class Missing(Exception):
    """Something that a test needs is not on this machine. Never a reason to skip."""


class CommandFailed(Exception):
    """A command gave another exit code than expected, or ran out of time. The message has what it printed."""


def program(name):
    """The path of a program, or Missing with its package's name."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not path:
        raise Missing("%s is not installed: apt-get install %s" % (name, PACKAGES.get(name, name)))
    return path


def run(*command, limit=60, expect=(0,), **words):
    """Runs a command to its end; returns its standard output and error as one text.

    `expect` holds the exit codes that are right, None any. The time limit, in seconds, kills it.
    """
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit, check=False,
                              encoding="utf-8", errors="replace", **words)
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        raise CommandFailed("%s: no end after %d s; it printed:\n%s" % (" ".join(command), limit, text)) from error
    if expect is not None and done.returncode not in expect:
        raise CommandFailed("%s: exit code %d; it printed:\n%s" % (" ".join(command), done.returncode, done.stdout))
    return done.stdout


def build_dir():
    """Where the kit keeps what it compiles: beside cargo's own output."""
    folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "kit"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def built(name):
    """A program of the project's own build: bcache_tgt, bcachectl or bdevperf. BCACHE_TGT, BCACHE_BCACHECTL and
    BCACHE_BDEVPERF override."""
    override = os.environ.get({"bcache_tgt": "BCACHE_TGT"}.get(name, "BCACHE_" + name.upper()))
    path = pathlib.Path(override) if override else build_dir().parent / "release" / name
    if not path.exists():
        raise Missing("%s is not built: run `make%s`" % (path, " bdevperf" if name == "bdevperf" else ""))
    return path


def spdk_dir():
    """The SPDK tree that the project was built with: $SPDK_DIR, else what spdk/setup.sh finds."""
    given = os.environ.get("SPDK_DIR")
    if given:
        return pathlib.Path(given)
    lines = run(ROOT / "spdk" / "setup.sh", limit=1800).split()
    return pathlib.Path(lines[-1])


def compile_blkio(static):
    """Compiles blkio, with libiscsi or static for the guest, unless the same sources were built; returns its path."""
    sources = [BLKIO_SOURCES / name for name in BLKIO_COMMON]
    if not static:
        if not pathlib.Path("/usr/include/iscsi/iscsi.h").exists():
            raise Missing("libiscsi's header is not installed: apt-get install libiscsi-dev")
        sources.append(BLKIO_SOURCES / "dev_iscsi.c")
    digest = hashlib.sha256()
    for path in sorted(BLKIO_SOURCES.iterdir()):
        digest.update(path.read_bytes())
    out = build_dir() / ("blkio-%s-%s" % ("static" if static else "iscsi", digest.hexdigest()[:12]))
    if out.exists():
        return out
    partial = out.with_suffix(".%d" % os.getpid())
    run(program("cc"), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", partial, *sources,
        *(["-static"] if static else ["-DWITH_ISCSI", "-liscsi"]))
    partial.rename(out)
    return out
