"""One SPDK application as a child process, from its start to the last trace of it."""

import glob
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time

from . import tools
from .rpc import RpcClient, RpcError, RpcLost

START_SECONDS = 60
STOP_SECONDS = 60


class TargetDied(Exception):
    """The process ended when it should not have; the message holds the end of its log."""


def remove_leftovers(pid):
    """Removes what a process of DPDK's leaves behind when it is killed: huge pages, run folder, trace file."""
    for path in glob.glob("/dev/hugepages/spdk_pid%dmap_*" % pid) + glob.glob("/dev/shm/*pid%d" % pid):
        pathlib.Path(path).unlink(missing_ok=True)
    shutil.rmtree("/var/run/dpdk/spdk_pid%d" % pid, ignore_errors=True)


def remove_shared(number):
    """Removes what a target with that shared-memory id leaves behind."""
    for path in glob.glob("/dev/hugepages/spdk%dmap_*" % number) + glob.glob("/dev/shm/*.%d" % number):
        pathlib.Path(path).unlink(missing_ok=True)
    shutil.rmtree("/var/run/dpdk/spdk%d" % number, ignore_errors=True)


def scratch_folder():
    """A short-named temporary folder: a Unix socket's path may have 107 characters at most."""
    return pathlib.Path(tempfile.mkdtemp(prefix="bcache-", dir=os.environ.get("TMPDIR", "/tmp")))


class Target:
    """An application with an RPC socket.

    folder      where the socket and the log go; vhost sockets too
    cpumask     its reactors
    memory_mb   its huge pages
    config      a path of an SPDK JSON configuration to start with
    wait_for_rpc  stop before the subsystems start, until framework_start_init is called
    program     the binary; bcache_tgt by default
    arguments   more command-line arguments
    """

    def __init__(self, folder, name="tgt", cpumask="0x1", memory_mb=1024, config=None, wait_for_rpc=False,
                 program=None, arguments=()):
        self.folder = pathlib.Path(folder)
        self.name = name
        self.cpumask = cpumask
        self.memory_mb = memory_mb
        self.config = config
        self.wait_for_rpc = wait_for_rpc
        self.program = pathlib.Path(program or tools.built("bcache_tgt"))
        self.arguments = list(arguments)
        self.socket = self.folder / (name + ".sock")
        self.log = self.folder / (name + ".log")
        self.process = None
        self.rpc = None
        self.shared = None

    def command(self):
        """The command line. Each start has a shared-memory id of its own: without one SPDK's iSCSI module shares its
        table of connections with every other target on the machine."""
        command = [str(self.program), "-i", str(self.shared), "-m", self.cpumask, "-s", str(self.memory_mb), "-r", str(self.socket),
                   "--huge-unlink", "--no-pci", *self.arguments]
        # elsewhere -S means other things, or nothing
        if re.search(r"^\s*-S\b.*vhost", usage_of(self.program), re.MULTILINE):
            command += ["-S", str(self.folder)]
        if "--disable-cpumask-locks" in usage_of(self.program):
            command += ["--disable-cpumask-locks"]
        if self.config:
            command += ["--json", str(self.config)]
        if self.wait_for_rpc:
            command += ["--wait-for-rpc"]
        return command

    def start(self, limit=START_SECONDS):
        """Starts the process and waits until it answers; returns self."""
        assert self.process is None, "the target runs already"
        self.socket.unlink(missing_ok=True)
        self.shared = secrets.randbelow(1 << 30) + 1
        with open(self.log, "ab") as log:
            log.write(("\n== %s\n" % " ".join(self.command())).encode())
            log.flush()
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True)
        try:
            self.connect(time.monotonic() + limit)
        except BaseException:
            self.kill()
            raise
        return self

    def connect(self, deadline):
        """Connects to the RPC socket as soon as it answers and, unless told to wait, start-up is complete."""
        while True:
            if self.process.poll() is not None:
                raise TargetDied("%s ended with %d while starting:\n%s" %
                                 (self.program.name, self.process.returncode, self.log_end()))
            try:
                self.rpc = RpcClient(self.socket)
                if not self.wait_for_rpc:
                    self.rpc.call("framework_wait_init", limit=max(1.0, deadline - time.monotonic()))
                return
            except (RpcLost, RpcError) as error:
                if time.monotonic() > deadline:
                    raise TargetDied("%s does not answer: %s\n%s" %
                                     (self.program.name, error, self.log_end())) from error
                time.sleep(0.05)

    def call(self, method, limit=None, **params):
        """An RPC; when the connection breaks because the process died, the error says so."""
        try:
            return self.rpc.call(method, limit, **params)
        except RpcLost as error:
            time.sleep(0.2)
            if self.process is not None and self.process.poll() is not None:
                raise TargetDied("%s died (%d) in %s:\n%s" % (self.program.name, self.process.returncode, method,
                                                             self.log_end())) from error
            raise

    def running(self):
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def save_config(self, path):
        """Writes the configuration of all subsystems, as save_config does; returns it."""
        names = [entry["subsystem"] for entry in self.call("framework_get_subsystems")]
        saved = {"subsystems": [{"subsystem": name, "config": self.call("framework_get_config", name=name)}
                                for name in names]}
        path.write_text(json.dumps(saved))
        return saved

    def stop(self, limit=STOP_SECONDS):
        """Ends the process in good order (SIGTERM); that it exits with 0 in time is part of what is tested."""
        code = self.end(signal.SIGTERM, limit)
        if code != 0:
            raise TargetDied("%s ended with %s instead of 0:\n%s" % (self.program.name, code, self.log_end()))

    def kill(self):
        """Ends the process at once (SIGKILL), in the middle of whatever it does."""
        if self.process is not None:
            self.end(signal.SIGKILL, 30)

    def end(self, number, limit):
        """Sends a signal, waits, cleans up; returns the exit code, or None when it had to be killed after the limit."""
        process, self.process = self.process, None
        if self.rpc is not None:
            self.rpc.close()
            self.rpc = None
        code = None
        if process.poll() is None:
            process.send_signal(number)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
        remove_leftovers(process.pid)
        remove_shared(self.shared)
        self.socket.unlink(missing_ok=True)
        return code

    def restart(self, kill=False):
        """Ends the process, by force or in good order, and starts it again."""
        if kill:
            self.kill()
        else:
            self.stop()
        return self.start()

    def log_end(self, lines=30):
        """The last lines of the log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, value, trace):
        self.kill()


USAGE = {}


def usage_of(program):
    """What a binary prints for --help: options differ between SPDK's releases."""
    key = str(program)
    if key not in USAGE:
        USAGE[key] = tools.run(program, "--help", limit=20, expect=None)
    return USAGE[key]
