"""bdevperf: a configuration of bdevs and one workload on one of them, in a process of its own."""

import json
import re
import subprocess

from . import tools
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


def run(folder, config, arguments, cpumask="0x1", memory_mb=512, limit=60, program=None):
    """Starts bdevperf on a configuration, runs one workload; returns (requests a second, its output)."""
    path = folder / "bdevperf.json"
    path.write_text(json.dumps(config, indent=1))
    command = [str(program or tools.built("bdevperf")), "-m", cpumask, "-s", str(memory_mb), "--huge-unlink",
               "--no-pci", "-r", str(folder / "bdevperf.sock"), "--json", str(path), *arguments]
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
    """A bdevperf that stays up, so that one workload runs again over the bdevs as the last run left them.

    Data are copied, as a client over any transport would, unless `in_place` is given: bdevperf of 20.07 then lets
    bdevs that can (malloc) be read in their own memory.
    """

    def __init__(self, folder, config, arguments, cpumask="0x1", memory_mb=1024, program=None, in_place=False):
        path = folder / "bdevperf.json"
        path.write_text(json.dumps(config, indent=1))
        program = program or tools.built("bdevperf")
        copying = ["-x"] if not in_place and "disable using zcopy" in usage_of(program) else []
        self.target = Target(folder, name="bdevperf", cpumask=cpumask, memory_mb=memory_mb, config=path,
                             program=program, arguments=["-z", *copying, *arguments])

    def __enter__(self):
        self.target.start()
        return self

    def __exit__(self, kind, value, trace):
        self.target.kill()

    def measure(self, limit=60):
        """Runs the workload once; requests a second."""
        before = len(self.target.log.read_text(errors="replace"))
        answer = self.target.call("perform_tests", limit=limit)
        if isinstance(answer, dict) and "results" in answer:  # newer releases say it themselves
            return sum(job["iops"] for job in answer["results"])
        # the total adds up all runs so far, so it is the jobs' own lines that count
        text = self.target.log.read_text(errors="replace")[before:].replace("\r", "\n")
        jobs = re.findall(r"^\s*(\S+)\s*:\s*([0-9.]+) IOPS", text, re.MULTILINE)
        rates = [float(rate) for name, rate in jobs if name != "Total"]
        if not rates:
            raise PerfFailed("bdevperf printed no rates:\n%s" % text)
        return sum(rates)
