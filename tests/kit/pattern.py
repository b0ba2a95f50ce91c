"""blkio from Python: writes with a log of what is durable, and the verdict afterwards.

A `Pattern` follows one device through rounds of writing, breaking off and verifying. It keeps the state (what every
sector held when last verified) and hands every round versions of its own, so that stale data of any earlier round are
recognised.
"""

import pathlib
import re
import subprocess

from . import tools

EXIT_LOST = 3


def arguments(options):
    """key=value for the command line."""
    return ["%s=%s" % (key, value) for key, value in options.items() if value is not None]


def summary(text, kind):
    """The numbers of blkio's closing line of that kind, as a dictionary."""
    lines = re.findall(r"^@%s (.*)$" % kind, text, re.MULTILINE)
    if not lines:
        raise tools.CommandFailed("blkio printed no @%s line:\n%s" % (kind, text))
    return {key: float(value) if "." in value else int(value)
            for key, value in (pair.split("=") for pair in lines[-1].split())}


class Writing:
    """A blkio that writes in the background."""

    def __init__(self, process, log, output):
        self.process = process
        self.log = log
        self.output = output

    def flushed(self):
        """How many flushes were acknowledged so far."""
        return self.log.read_text().count("@flush ") if self.log.exists() else 0

    def wait(self, expect=(0, ), limit=60):
        """Waits for its end; returns the exit code."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise tools.CommandFailed("blkio: no end after %d s:\n%s" % (limit, self.text())) from None
        if code not in expect:
            raise tools.CommandFailed("blkio: exit code %d:\n%s" % (code, self.text()))
        return code

    def text(self):
        """What it printed besides the log."""
        return self.output.read_text(errors="replace")


class Pattern:
    """The contents of one device over several rounds. `device` is a path or an iscsi:// URL, and may change."""

    def __init__(self, folder, device, name="pattern"):
        self.folder = pathlib.Path(folder)
        self.device = str(device)
        self.name = name
        self.state = None
        self.log = None
        self.next_version = 1
        self.tool = tools.compile_blkio(static=False)

    def begin(self, count=1000, seed=None, **options):
        """Starts a round of at most `count` writes in the background; options as in blkio.c's head."""
        assert self.log is None, "the last round was not verified"
        first, self.next_version = self.next_version, self.next_version + count
        self.log = self.folder / ("%s.%d.log" % (self.name, first))
        output = self.folder / ("%s.out" % self.name)
        command = [str(self.tool), "write", self.device, *arguments(dict(
            options, count=count, first=first, seed=seed if seed is not None else first, state=self.state,
            log=self.log))]
        with open(output, "wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        return Writing(process, self.log, output)

    def write(self, limit=60, **options):
        """A whole round, to its good end."""
        writing = self.begin(**options)
        writing.wait(limit=limit)

    def adopt_log(self, text, count):
        """A round that ran elsewhere, in a guest: `text` holds its log lines; it was given `count` versions."""
        assert self.log is None, "the last round was not verified"
        self.log = self.folder / ("%s.%d.log" % (self.name, self.next_version))
        self.next_version += count
        self.log.write_text(text)

    def verify(self, device=None, limit=120, **options):
        """Holds every sector to the state and the round's log; the state then is what was found."""
        found = self.folder / ("%s.state.new" % self.name)
        text = tools.run(self.tool, "verify", device or self.device, *arguments(dict(
            options, state=self.state, log=self.log, newstate=found)), limit=limit)
        self.accept(found)
        return summary(text, "verify")

    def accept(self, found):
        """Takes a state file that a verify made, here or in a guest."""
        state = self.folder / ("%s.state" % self.name)
        found.rename(state)
        self.state = state
        self.log = None

    def read(self, limit=120, **options):
        """Random reads checked against the state; the numbers of the @read line."""
        text = tools.run(self.tool, "read", self.device, *arguments(dict(options, state=self.state)), limit=limit)
        return summary(text, "read")


def golden(device, expect, at=0, limit=120):
    """Compares a device with a golden fixture's versions."""
    text = tools.run(tools.compile_blkio(static=False), "golden", device, expect, "at=%d" % at, limit=limit)
    return summary(text, "verify")


def sectors(device):
    """A device's size in sectors and its block in sectors."""
    numbers = summary(tools.run(tools.compile_blkio(static=False), "info", device, limit=30), "info")
    return numbers["sectors"], numbers["block"]
