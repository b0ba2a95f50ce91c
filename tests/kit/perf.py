"""bdevperf: a configuration of bdevs and one workload on one of them, in a process of its own."""

import json
import re
import signal
import subprocess
import time

from . import tools
from .rpc import RpcClient, RpcError
from .target import Target, remove_leftovers, usage_of


def bdev_config(*methods):
    """An SPDK JSON configuration that carries out (method, params) pairs in the bdev subsystem."""
    return {"subsystems": [{"subsystem": "bdev",
                            "config": [{"method": method, "params": params} for method, params in methods]}]}


class PerfFailed(Exception):
    """bdevperf found wrong data, or did not end well; the message holds its output."""


def workload(bdev, kind, seconds, depth=32, size=4096, every_core=False, read_percent=None):
    """bdevperf's arguments for one workload."""
    arguments = ["-T", bdev, "-w", kind, "-t", str(seconds), "-q", str(depth), "-o", str(size)]
    if every_core:
        arguments.append("-C")
    if read_percent is not None:
        arguments += ["-M", str(read_percent)]
    return arguments


def parse_iops(text):
    """The requests a second of the closing total."""
    totals = re.findall(r"^\s*Total\s*:\s*([0-9.]+)", text.replace("\r", "\n"), re.MULTILINE)
    if not totals:
        raise PerfFailed("bdevperf printed no total:\n%s" % text)
    return float(totals[-1])


def run(folder, config, arguments, cpumask="0x1", memory_mb=512, limit=60, program=None, shares_memory=False):
    """Starts bdevperf on a configuration, runs one workload; returns (requests a second, its output). A process that
    shares its memory can be a client of vhost."""
    path = folder / "bdevperf.json"
    path.write_text(json.dumps(config, indent=1))
    memory = ["--single-file-segments"] if shares_memory else ["--huge-unlink"]
    command = [str(program or tools.built("bdevperf")), "-m", cpumask, "-s", str(memory_mb), "--no-pci", *memory, "-r",
               str(folder / "bdevperf.sock"), "--json", str(path), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               encoding="utf-8", errors="replace")
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        raise PerfFailed("bdevperf: no end after %d s:\n%s" % (limit, text)) from None
    finally:
        remove_leftovers(process.pid)
    if process.returncode != 0 or re.search(r"Buffer mismatch|miscompare|error", text, re.IGNORECASE):
        raise PerfFailed("bdevperf ended with %d:\n%s" % (process.returncode, text))
    return parse_iops(text), text


class Session:
    """A bdevperf whose workload goes on until it is killed; `rate` measures any stretch of it, `pause` stops it.

    One run, and not one after the other: SPDK 20.07 adds its job anew to a list with each, so that the second run has
    twice the depth, and leaves a thread and its ring behind. The figures are the bdev layer's own counts and clock.
    Data are copied, as a client over any transport would: bdevperf of 20.07 would else let bdevs that can (malloc) be
    read in their own memory.
    """

    def __init__(self, folder, config, bdev, arguments, cpumask="0x1", memory_mb=1024, program=None):
        path = folder / "bdevperf.json"
        path.write_text(json.dumps(config, indent=1))
        program = program or tools.built("bdevperf")
        copying = ["-x"] if "disable using zcopy" in usage_of(program) else []
        self.bdev = bdev
        self.run = None
        self.one_name = True
        self.target = Target(folder, name="bdevperf", cpumask=cpumask, memory_mb=memory_mb, config=path,
                             program=program, arguments=["-z", *copying, *arguments])

    def __enter__(self):
        """Starts the process and its workload."""
        self.target.start()
        self.run = RpcClient(self.target.socket)
        self.run.send("perform_tests")
        return self

    def __exit__(self, kind, value, trace):
        if self.run is not None:
            self.run.close()
        self.target.kill()

    def pause(self):
        """Stops the process where it is, so that others have the core that its reactors poll on."""
        self.target.process.send_signal(signal.SIGSTOP)

    def resume(self):
        """Lets a process that was paused go on."""
        self.target.process.send_signal(signal.SIGCONT)

    def iostat(self):
        """The bdev layer's counts; newer releases take a list of names."""
        if self.one_name:
            try:
                return self.target.call("bdev_get_iostat", name=self.bdev)
            except RpcError as error:
                if "decode" not in error.message:
                    raise
                self.one_name = False
        return self.target.call("bdev_get_iostat", names=[self.bdev])

    def counts(self):
        """(requests so far, seconds on the bdev layer's clock, its ticks a second)."""
        answer = self.iostat()
        stats = answer["bdevs"][0]
        return (stats["num_read_ops"] + stats["num_write_ops"], answer["ticks"] / answer["tick_rate"],
                answer["tick_rate"])

    def rate(self, seconds):
        """Requests a second over the next `seconds`; PerfFailed when the workload has ended."""
        before, began, _ = self.counts()
        time.sleep(seconds)
        after, ended, _ = self.counts()
        if after == before or re.search(r"Buffer mismatch|bdev=\S+ fails", self.target.log.read_text(errors="replace")):
            raise PerfFailed("the workload does not go on:\n%s" % self.target.log_end())
        return (after - before) / (ended - began)
