#!/usr/bin/env python3
"""The matrix: the same workload on a raw malloc bdev, SPDK's passthru over it, this cache and SPDK's OCF.

bdevperf, everything in memory: what is measured is the processor time that a layer costs a request. The candidates of
a cell run in turn, round after round; the table has medians and, after ±, half of the spread between the rounds. Ours
alone: latency beside background work, and the map's size from 64 K extents on. Then the figures to reach, beside the
measured ones. One-core cells run on the highest core of the mask; leave it to them, for a figure of a shared core is
none. The numbers go into results.json and SVG plots beside it, into --out FOLDER.

A cell that fails says why and the run goes on; the exit code is then 1.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kit import tools  # noqa: E402  (the path comes first)

import latency  # noqa: E402
import matrix  # noqa: E402
import report  # noqa: E402
import runner  # noqa: E402
import scale  # noqa: E402
from progress import Progress  # noqa: E402

START_SECONDS = 1.5
NO_COUNTERS = ("cycles and instructions were not counted: `perf stat` is missing or this machine gives it no counters; "
               "cycles are those of the time stamp counter instead")
OCF_CUTOFF = ("OCF's sequential cut-off cannot be set in bdev_ocf; its default acts only while the cache is full, "
              "which it is in no sequential cell")


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scopes = parser.add_mutually_exclusive_group()
    for scope, what in (("quick", "the cells that the figures to reach are about, about 4 minutes"),
                        ("smoke", "two tiny cells, to see that the bench works; the figures mean nothing"),
                        ("every", "all combinations of depth, size and cores, more than an hour")):
        scopes.add_argument("--" + scope, dest="scope", action="store_const", const=scope, help=what)
    parser.add_argument("--rounds", type=int, help="rounds of each cell (default: 3; 1 with --smoke)")
    parser.add_argument("--seconds", type=float, help="length of a round (default: 1; 0.3 with --smoke)")
    parser.add_argument("--only", nargs="+", choices=matrix.CANDIDATES, default=list(matrix.CANDIDATES),
                        metavar="CANDIDATE", help="candidates to run: " + ", ".join(matrix.CANDIDATES))
    parser.add_argument("--parts", nargs="+", choices=[*matrix.BY_KEY, "latency", "scale"], metavar="PART",
                        help="parts to run: %s, latency, scale" % ", ".join(matrix.BY_KEY))
    parser.add_argument("--extents", nargs="+", type=int, help="sizes of the map, for the scale part (default: 65536 "
                        "1048576 16777216; of 134217728 blocks 90 million are ever read: 2.2 GB, five minutes)")
    parser.add_argument("--cpumask", type=lambda words: int(words, 16), default=0x3,
                        help="cores to run on (default: 0x3)")
    parser.add_argument("--out", type=pathlib.Path, default=tools.build_dir().parent / "bench",
                        help="folder of the results (default: target/bench)")
    parser.add_argument("--bdevperf", type=pathlib.Path, help="the binary (default: target/release/bdevperf)")
    options = parser.parse_args(arguments)
    options.scope = options.scope or "star"
    smoke, quick = options.scope == "smoke", options.scope == "quick"
    options.rounds = options.rounds or (1 if smoke else 3)
    options.seconds = options.seconds or (0.3 if smoke else 1.0)
    options.warm_seconds = 0.3 if smoke else 1.0
    options.latency_seconds = 0.3 if smoke else 2.0 if quick else 5.0
    options.extents = options.extents or ([4096] if smoke else [1 << 16, 1 << 20] + ([] if quick else [1 << 24]))
    options.situations = [latency.IDLE] if smoke else list(latency.SITUATIONS)
    options.counters = runner.has_counters()
    return options


def wants(options, part):
    return not options.parts or part in options.parts


class Run:
    """A run, part after part; `failures` counts what went wrong."""

    def __init__(self, options):
        self.options = options
        self.cells = matrix.cells(options.scope, options.parts)
        self.situations = options.situations if wants(options, "latency") else []
        self.extents = options.extents if wants(options, "scale") else []
        self.cell_seconds = len(options.only) * (
            START_SECONDS + options.warm_seconds + options.rounds * (options.seconds + runner.RAMP_SECONDS))
        self.situation_seconds = START_SECONDS + options.warm_seconds + options.latency_seconds
        total = len(self.cells) * self.cell_seconds + len(self.situations) * self.situation_seconds
        self.progress = Progress(total + sum(map(self.scale_seconds, self.extents)))
        self.failures = 0
        self.measured, self.latencies, self.scales = [], {}, {}

    def scale_seconds(self, extents):
        return 2 + extents * 5 / 1e6 + self.options.rounds * self.options.seconds

    def say(self, words=""):
        """Prints a line in place of the status."""
        self.progress.clear()
        print(words, flush=True)

    def matrix(self):
        """All cells, a table for each workload."""
        title = None
        for cell in self.cells:
            if cell.workload.title != title:
                title = cell.workload.title
                self.say("\n%s (requests a second)\n%s" % (title, report.CELL_HEAD))
            self.progress.begin("%s, %s" % (cell.workload.key, cell.point))
            results = runner.measure(cell, self.options, self.progress.status)
            self.progress.end(self.cell_seconds)
            self.failures += sum("error" in result for result in results.values())
            self.measured.append((cell, results))
            self.say(report.cell_line(cell, results))

    def background(self):
        """Latency beside background work."""
        if self.situations:
            self.say("\nlatency beside background work, ours, 4K, QD 32, one core; microseconds\n%-42s%10s" % (
                "", "requests/s") + "".join("%10s" % name for name in runner.SHARES))
        for situation in self.situations:
            self.progress.begin(situation)
            result = self.latencies[situation] = latency.measure(situation, self.options)
            self.progress.end(self.situation_seconds)
            self.failures += "error" in result
            self.say(report.latency_line(situation, result))

    def sizes(self):
        """The map from small to large."""
        if self.extents:
            self.say("\nhits by cached extents, ours, 4K, QD 128, one core, null bdevs\n%-10s%12s%14s%7s%8s%14s%14s" % (
                "", "extents", "requests/s", "", "hits", "index, B each", "process, B"))
        for extents in self.extents:
            self.progress.begin("scale")
            result = self.scales[extents] = scale.measure(extents, self.options, self.progress.status)
            self.progress.end(self.scale_seconds(extents))
            self.failures += "error" in result
            self.say(report.scale_line(extents, result))

    def close(self):
        """The closing tables and the files."""
        notes = [OCF_CUTOFF] + ([] if self.options.counters else [NO_COUNTERS])
        targets = report.Targets(self.measured, self.latencies, self.scales)
        self.say("\n".join(report.cost_lines(self.measured) + targets.lines()))
        self.say("\n" + "\n".join("note: " + note for note in notes))
        folder = self.options.out
        folder.mkdir(parents=True, exist_ok=True)
        path = report.write_json(folder, self.options, self.measured, self.latencies, self.scales, targets, notes)
        drawn = report.plots(folder, self.measured, self.latencies, self.scales)
        self.say("%s and %d plots in %s" % (path.name, len(drawn), folder))
        if self.failures:
            self.say("%d measurements failed, see above" % self.failures)


def main():
    """Measures what was asked for."""
    options = parse(sys.argv[1:])
    runner.pin_aside(options.cpumask)
    run = Run(options)
    here = report.machine()
    print("bdevperf, malloc bdevs of 4 KiB blocks, %d rounds of %g s each, on %s" % (options.rounds, options.seconds,
                                                                                 here["cpu"]), flush=True)
    run.matrix()
    run.background()
    run.sizes()
    run.close()
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
