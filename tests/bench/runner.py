"""One cell of the matrix: all candidates up at once, all but one of them paused, measured in turn, round after round.

A process of SPDK polls, so those that are not measured are stopped by a signal: they cost nothing, and what is compared
was measured within seconds of each other. Every figure of every round is kept.
"""

import base64
import contextlib
import os
import shutil
import statistics
import struct
import subprocess
import threading
import time

from kit import perf, target
from kit.rpc import RpcClient, RpcError, RpcLost

import matrix

# What can go wrong with one candidate without ending the run.
FAILURES = (perf.PerfFailed, target.TargetDied, RpcError, RpcLost, OSError)
SHARES = {"median": 0.5, "99 %": 0.99, "99.99 %": 0.9999, "worst": 1.0}
HITS_AT_LEAST = 0.99
HITS_AT_MOST = 0.1
# Of what was written: a process that was paused looks idle to its own clock, so each round begins with a bit.
WRITTEN_BACK_AT_MOST = 0.02
COUNTERS = "cycles,instructions"
# Enough for what SPDK and bdevperf take themselves; rings and OCF's tables must not come from pages taken later.
HUGE_MB = 320
FOREVER_SECONDS = 1_000_000
# after a pause, before a figure counts
RAMP_SECONDS = 0.1


class Wrong(Exception):
    """What was measured is not what the workload is meant to be."""


def chosen_cores(allowed, cores):
    """The highest `cores` cores of a mask: the first one has the machine's interrupts, as a rule."""
    chosen = [core for core in range(allowed.bit_length()) if allowed >> core & 1][-cores:]
    if len(chosen) < cores:
        raise Wrong("wants %d cores, and the mask %#x has %d" % (cores, allowed, len(chosen)))
    return chosen


def mask_of(cores):
    """As SPDK takes it."""
    return "%#x" % sum(1 << core for core in cores)


def has_counters():
    """Whether `perf stat` can count here: it is installed, and the machine has counters."""
    if not shutil.which("perf"):
        return False
    done = subprocess.run(["perf", "stat", "-x,", "-e", COUNTERS, "true"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, check=False, encoding="utf-8")
    return done.returncode == 0 and "<not" not in done.stderr


def count(pid, seconds):
    """Cycles and instructions a second of a process, from `perf stat` over that time."""
    done = subprocess.run(["perf", "stat", "-x,", "-e", COUNTERS, "-p", str(pid), "sleep", str(seconds)],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, encoding="utf-8")
    rates = {}
    for line in done.stderr.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[0].isdigit():
            rates[fields[2].split(":")[0]] = int(fields[0]) / seconds
    return rates


def histogram(answer):
    """(upper bound in microseconds, requests) of each bucket, from what bdev_get_histogram says."""
    raw = base64.b64decode(answer["histogram"])
    shift = answer.get("bucket_shift", answer.get("granularity"))
    per_range = 1 << shift
    found = []
    for i, (requests,) in enumerate(struct.iter_unpack("<Q", raw)):
        order, index = divmod(i, per_range)
        order += answer.get("min_range", 0)
        ticks = index + 1 if order == 0 else (1 << (order + shift - 1)) + ((index + 1) << (order - 1))
        if requests:
            found.append((ticks * 1e6 / answer["tsc_rate"], requests))
    return found


def percentile(buckets, share):
    """The latency that this share of the requests did not exceed, in microseconds."""
    total, so_far = sum(requests for _, requests in buckets), 0
    for latency_us, requests in buckets:
        so_far += requests
        if so_far >= share * total:
            return latency_us
    return 0.0


def go_first(pid):
    """What else runs on a process's cores comes last. Without the right to it the spread is larger, that is all."""
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/%d/task" % pid):
            os.setpriority(os.PRIO_PROCESS, int(task), -20)
        # where Linux groups processes by session, it is the group's priority that counts against others
        with open("/proc/%d/autogroup" % pid, "w", encoding="ascii") as file:
            file.write("-20")


class Live:
    """A candidate whose workload runs, or is paused; `iops` has a figure for each round."""

    def __init__(self, bdev, config, arguments, options, cores, huge_mb=HUGE_MB):
        self.bdev, self.options, self.cores = bdev, options, cores
        self.folder = target.scratch_folder()
        load = perf.workload(bdev, seconds=FOREVER_SECONDS, every_core=len(cores) > 1, **arguments)
        self.session = perf.Session(self.folder, perf.bdev_config(*config), bdev, load, cpumask=mask_of(cores),
                                    memory_mb=huge_mb, program=options.bdevperf)
        self.iops, self.counted = [], []

    def start(self):
        """Starts the process and its workload."""
        # DPDK takes a core mask, but keeps its threads on the cores that it was started on
        ours = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            self.session.__enter__()
        finally:
            os.sched_setaffinity(0, ours)
        go_first(self.session.target.process.pid)
        return self

    def close(self):
        """Ends the process, paused or not, and removes its folder."""
        self.session.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method, **params):
        return self.session.target.call(method, limit=60, **params)

    def round(self):
        """A round whose figures are kept, with the machine's counters in its middle half."""
        seconds, rates = self.options.seconds, {}
        timer = threading.Timer(seconds / 4,
                                lambda: rates.update(count(self.session.target.process.pid, seconds / 2)))
        if self.options.counters:
            timer.start()
        self.iops.append(self.session.rate(seconds))
        if self.options.counters:
            timer.join()
            self.counted.append({name: rate / self.iops[-1] for name, rate in rates.items()})

    def latencies(self, seconds, gc=None):
        """A stretch under the bdev layer's histogram: requests a second and the latencies of SHARES, in microseconds.
        The histogram is fetched once, at the end: fetching it costs the reactor a millisecond. With the UUID of a set
        in `gc`, passes of garbage collection go on meanwhile."""
        def collect():
            rpc, end = RpcClient(self.session.target.socket), time.monotonic() + seconds
            while time.monotonic() < end:
                rpc.call("bdev_bcache_gc", limit=60, set=gc)
            rpc.close()

        # bdevperf of newer releases has one of its own, of another shape, which would stand in the way
        self.call("bdev_enable_histogram", name=self.bdev, enable=False)
        self.call("bdev_enable_histogram", name=self.bdev, enable=True)
        collector = threading.Thread(target=collect) if gc else None
        if collector:
            collector.start()
        try:
            iops = self.session.rate(seconds)
            buckets = histogram(self.call("bdev_get_histogram", name=self.bdev))
        finally:
            if collector:
                collector.join()
        self.call("bdev_enable_histogram", name=self.bdev, enable=False)
        if not buckets:
            raise Wrong("the histogram stayed empty")
        return dict({"iops": iops}, **{name: percentile(buckets, share) for name, share in SHARES.items()})


def start_cell(candidate, cell, options):
    """A candidate of a cell, started and warmed up."""
    work = cell.workload
    need, free = matrix.huge_mb(candidate, cell), free_huge_mb()
    if free < need:
        raise Wrong("wants %d MiB of huge pages, and %d are free" % (need, free))
    bdev, config = matrix.setup(candidate, work)
    cores = chosen_cores(options.cpumask, cell.cores)
    arguments = {"kind": work.kind, "depth": cell.depth, "size": cell.size, "read_percent": work.read_percent}
    live = Live(bdev, config, arguments, options, cores, need)
    try:
        live.start()
        live.session.rate(options.warm_seconds)
        if candidate == "ours":
            live.call("bdev_bcache_reset_stats", name=bdev)
    except BaseException:
        live.close()
        raise
    return live


def figures(candidate, cell, live):
    """What is kept of a candidate: medians, spread, and what tells whether it did what it was meant to."""
    result = {"iops": statistics.median(live.iops), "low": min(live.iops), "high": max(live.iops),
              "rounds": live.iops}
    # a reactor polls whether it has work or not, so all of its time is what the requests cost
    _, _, ticks_per_second = live.session.counts()
    result["ticks"] = ticks_per_second * cell.cores / result["iops"]
    for name in COUNTERS.split(","):
        counted = [entry[name] for entry in live.counted if name in entry]
        if counted:
            result[name] = statistics.median(counted)
    if candidate != "ours":
        return result
    stats = live.call("bdev_bcache_get_stats", name=live.bdev)["total"]
    looked = stats["cache_hits"] + stats["cache_misses"]
    result["hits"] = stats["cache_hits"] / looked if looked else None
    result["written_bytes"] = stats["written_bytes"]
    result["written_back_bytes"] = live.call("bdev_bcache_get_sets")[0]["written_back_bytes"]
    return result


def check(work, result):
    """Raises Wrong when our figures are not the workload's."""
    hits = result["hits"]
    if work.hits == "all" and (hits is None or hits < HITS_AT_LEAST):
        raise Wrong("%.1f %% hits, where all were to hit" % (100 * (hits or 0)))
    if work.hits == "none" and (hits is None or hits > HITS_AT_MOST):
        raise Wrong("%.1f %% hits, where all were to miss" % (100 * (hits or 0)))
    if work.quiet and result["written_back_bytes"] > WRITTEN_BACK_AT_MOST * result["written_bytes"]:
        raise Wrong("%d bytes of %d were written back, where nothing was to be" %
                    (result["written_back_bytes"], result["written_bytes"]))


def measure(cell, options, status):
    """A cell: {candidate: figures, or {"error": why}}. `status(text)` is told what goes on."""
    results, running = {}, {}

    def attempt(candidate, step):
        try:
            return step()
        except (Wrong, *FAILURES) as error:
            results[candidate] = {"error": str(error)}
            if candidate in running:
                results[candidate]["error"] += "\n" + running[candidate].session.target.log_end(5)
                running.pop(candidate).close()
            return None

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [live.close() for live in running.values()])
        for candidate in options.only:
            status("%s starts" % candidate)
            live = attempt(candidate, lambda name=candidate: start_cell(name, cell, options))
            if live:
                running[candidate] = live
                live.session.pause()
        for number in range(options.rounds):
            for candidate in list(running):
                status("%s, round %d of %d" % (candidate, number + 1, options.rounds))
                attempt(candidate, lambda name=candidate: turn(running[name], Live.round))
        for candidate in list(running):
            status("%s, closing" % candidate)
            found = attempt(candidate, lambda name=candidate: turn(running[name],
                                                                   lambda it, n=name: close_up(n, cell, it, options)))
            if found:
                results[candidate] = found
    return {candidate: results[candidate] for candidate in options.only if candidate in results}


def turn(live, step):
    """Lets a paused candidate do one step."""
    live.session.resume()
    time.sleep(RAMP_SECONDS)
    result = step(live)
    live.session.pause()
    return result


def close_up(candidate, cell, live, options):
    """The figures of a candidate whose rounds are over; at depth 1 with a last round's latencies."""
    result = figures(candidate, cell, live)
    if candidate == "ours":
        check(cell.workload, result)
    if cell.depth == 1:
        result["latency_us"] = live.latencies(options.seconds)
    return result


def free_huge_mb():
    """Huge pages that nobody has, in MiB."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["HugePages_Free"]) * int(fields["Hugepagesize"].split()[0]) // 1024


def pin_aside(allowed):
    """Keeps this script itself off the core that one-core cells run on, where there is another."""
    others = os.sched_getaffinity(0) - {allowed.bit_length() - 1}
    if others:
        os.sched_setaffinity(0, others)
