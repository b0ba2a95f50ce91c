"""What came out: tables, ratios, the figures to reach beside the measured ones, JSON, plots.

A ratio of two candidates is the median of the rounds' ratios: a round's runs stand next to each other in time, so that
what slows the machine down for a while falls on both.
"""

import datetime
import json
import pathlib
import platform
import statistics

import latency
import matrix
import plot
import runner
import scale

LATENCY_LIMIT_US = 2000


def ratio(results, over, under):
    """Median over the rounds, or None."""
    pair = [results.get(name, {}).get("rounds") for name in (over, under)]
    if None in pair:
        return None
    return statistics.median(a / b for a, b in zip(*pair))


def percent(value):
    return "" if value is None else "%.0f %%" % (100 * value)


def times(value):
    return "" if value is None else "%.2f" % value


def machine():
    """What it was measured on."""
    models = [line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cores": len(models), "kernel": platform.release()}


def spread(result):
    """Half of the distance from the lowest round to the highest, as a share of the median."""
    return (result["high"] - result["low"]) / 2 / result["iops"]


CELL_HEAD = "%-22s" % "" + "".join("%17s" % matrix.CANDIDATES[i] for i in range(4)) + "%9s%11s%9s%7s" % (
    "of raw", "of passth.", "of OCF", "hits")


def cell_line(cell, results):
    """One line of a workload's table: requests a second with spread, ratios, hits; failures below."""
    words = "%-22s" % cell.point
    for candidate in matrix.CANDIDATES:
        found = results.get(candidate)
        if found is None:
            words += "%17s" % ""
        elif "error" in found:
            words += "%17s" % "failed"
        else:
            words += "%10.0f ±%3.0f %%" % (found["iops"], 100 * spread(found))
    hits = results.get("ours", {}).get("hits")
    words += "%9s%11s%9s%7s" % (percent(ratio(results, "ours", "raw")), percent(ratio(results, "ours", "passthru")),
                                times(ratio(results, "ours", "OCF")), "" if hits is None else percent(hits))
    errors = ["    %s failed: %s" % (candidate, found["error"].strip().replace("\n", "\n      "))
              for candidate, found in results.items() if "error" in found]
    return "\n".join([words.rstrip(), *errors])


def cost_lines(cells):
    """Ticks, cycles and instructions a request, and latencies at depth 1."""
    lines = ["", "a request's cost in cycles of the core that polls (those of the time stamp counter)",
             "%-40s" % "" + "".join("%10s" % name for name in matrix.CANDIDATES)]
    for name in ("ticks", "cycles", "instructions"):
        for cell, results in cells:
            found = {candidate: result[name] for candidate, result in results.items() if name in result}
            if found:
                lines.append("%-40s" % (cell.key + ("" if name == "ticks" else ", " + name)) + "".join(
                    "%10s" % ("%.0f" % found[candidate] if candidate in found else "") for candidate in
                    matrix.CANDIDATES))
    rows = [(cell, candidate, result) for cell, results in cells for candidate, result in results.items()
            if "latency_us" in result]
    if rows:
        lines += ["", "latency at depth 1 in microseconds; the mean is that of the rounds without the histogram",
                  "%-40s%10s%10s%10s%10s%10s" % ("", "mean", "median", "99 %", "99.99 %", "worst")]
    for cell, candidate, result in rows:
        found = result["latency_us"]
        lines.append("%-40s%10.3f%10.3f%10.3f%10.1f%10.0f" % (
            "%s, %s" % (cell.key, candidate), 1e6 / result["iops"], found["median"], found["99 %"], found["99.99 %"],
            found["worst"]))
    return lines


def latency_line(situation, result):
    """One line of the latencies beside background work."""
    if "error" in result:
        return "%-42s failed: %s" % (situation, result["error"])
    return "%-42s%10.0f%10.0f%10.0f%10.0f%10.0f" % (situation, result["iops"], result["median"], result["99 %"],
                                                    result["99.99 %"], result["worst"])


def scale_line(wanted, result):
    """One line of the scale part."""
    if "error" in result:
        return "%-10s failed: %s" % (scale.count_name(wanted), result["error"])
    return "%-10s%12d%14.0f ±%3.0f %%%8s%14.1f%14.1f" % (
        scale.count_name(wanted), result["extents"], result["iops"], 100 * spread(result), percent(result["hits"]),
        result["index_bytes"] / result["extents"], result["resident_bytes"] / result["extents"])


class Targets:
    """The figures to reach, each with what was measured; those whose cells did not run say so."""

    def __init__(self, cells, latencies, scales):
        self.cells = {cell.key: results for cell, results in cells}
        self.latencies, self.scales = latencies, scales
        self.rows = []
        self.ratios()
        self.others()

    def add(self, name, wanted, measured, reached, form):
        """One row; `measured` is None when there is no figure."""
        if measured is None:
            self.rows.append({"name": name, "wanted": wanted, "measured": None, "reached": None,
                              "text": "not measured"})
        else:
            self.rows.append({"name": name, "wanted": wanted, "measured": measured, "reached": bool(reached(measured)),
                              "text": form(measured)})

    def least(self, name, limit, measured, form=times):
        """A row whose figure must not be below a limit."""
        self.add(name, "at least " + form(limit), measured, lambda value: value >= limit, form)

    def most(self, name, limit, measured, form):
        """A row whose figure must not be above a limit."""
        self.add(name, "at most " + form(limit), measured, lambda value: value <= limit, form)

    def of(self, key, under):
        return ratio(self.cells.get(key, {}), "ours", under)

    def ratios(self):
        """Those between candidates."""
        for name, key, under, limit, form in (
                ("random read hits, of OCF", "hits 4K QD 128", "OCF", 8, times),
                ("random read hits, of passthru", "hits 4K QD 128", "passthru", 0.7, percent),
                ("write-back random writes, of OCF", "writeback 4K QD 128", "OCF", 5, times),
                ("write-back random writes, of passthru", "writeback 4K QD 128", "passthru", 0.5, percent),
                ("misses with fill, of OCF", "misses 4K QD 128", "OCF", 3, times),
                ("sequential read 64K, of passthru", "seqread 64K QD 128", "passthru", 0.9, percent),
                ("sequential write 64K, of passthru", "seqwrite 64K QD 128", "passthru", 0.9, percent)):
            self.least(name, limit, self.of(key, under), form)

    def others(self):
        """Those among our own figures."""
        quiet = self.cells.get("hits 4K QD 1", {})
        more_ns = None
        if all("rounds" in quiet.get(name, {}) for name in ("ours", "passthru")):
            more_ns = statistics.median(1e9 / a - 1e9 / b for a, b in
                                        zip(quiet["ours"]["rounds"], quiet["passthru"]["rounds"]))
        self.most("hit at depth 1, over passthru", 150, more_ns, lambda value: "%.0f ns" % value)
        for name, key, limit in (("hits", "hits", 1.9), ("write-back writes", "writeback", 1.6)):
            one, two = (self.cells.get("%s 4K QD 128%s" % (key, more), {}).get("ours", {}).get("iops")
                        for more in ("", ", 2 cores"))
            self.least("two reactors, of one, %s" % name, limit, two / one if one and two else None)
        good = {wanted: result for wanted, result in self.scales.items() if "error" not in result}
        small, large = good.get(min(good, default=0)), good.get(max(good, default=0))
        several = len(good) > 1
        self.least("hits with %s extents, of those with %s (64 M is meant)" % tuple(
            scale.count_name(result["extents"]) if result else "?" for result in (large, small)), 0.4,
            large["iops"] / small["iops"] if several else None, percent)
        self.most("memory an extent", 32, large["index_bytes"] / large["extents"] if large else None,
                  lambda value: "%.1f bytes" % value)
        tails = [result["99.99 %"] for name, result in self.latencies.items()
                 if "error" not in result and name != latency.IDLE]
        self.most("99.99 % of I/O beside gc, eviction, journal wraps", LATENCY_LIMIT_US, max(tails, default=None),
                  lambda value: "%.1f ms" % (value / 1000))

    def lines(self):
        """The closing table."""
        lines = ["", "%-58s%18s%16s" % ("figure to reach", "", "measured")]
        for row in self.rows:
            verdict = {True: "reached", False: "missed", None: ""}[row["reached"]]
            lines.append("%-58s%18s%16s  %s" % (row["name"], row["wanted"], row["text"], verdict))
        return lines


def write_json(folder, options, cells, latencies, scales, targets, notes):
    """All figures of all rounds."""
    told = {name: getattr(options, name) for name in ("scope", "rounds", "seconds", "latency_seconds")}
    entries = [{"key": cell.key, "workload": cell.workload.key, "title": cell.workload.title, "size": cell.size,
                "depth": cell.depth, "cores": cell.cores, "results": results} for cell, results in cells]
    path = folder / "results.json"
    path.write_text(json.dumps({
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "machine": machine(),
        "options": dict(told, cpumask="%#x" % options.cpumask), "cells": entries, "latency": latencies,
        "scale": {str(wanted): result for wanted, result in scales.items()}, "targets": targets.rows,
        "notes": notes}, indent=1) + "\n")
    return path


def plots(folder, cells, latencies, scales):
    """Writes the SVGs; returns their paths."""
    written = []

    def write(name, content):
        (folder / name).write_text(content, encoding="utf-8")
        written.append(folder / name)

    works = {}
    for cell, results in cells:
        works.setdefault(cell.workload.key, []).append((cell, results))
    series = list(matrix.CANDIDATES)
    for key, found in works.items():
        title = found[0][0].workload.title
        write("%s.svg" % key, plot.bars(
            title, "share of what the raw bdev does; above each bar its requests a second, whiskers from the worst "
            "round to the best", [cell.point for cell, _ in found], series,
            {cell.point: shares(results) for cell, results in found}, "of the raw bdev", percent))
        depths = [(cell, results) for cell, results in found if cell.size == matrix.BLOCK and cell.cores == 1]
        if len(depths) > 1:
            write("%s-depth.svg" % key, plot.lines(
                title, "4K, one core, by queue depth", series,
                {name: [(cell.depth, results[name]["iops"], results[name]["low"], results[name]["high"])
                        for cell, results in depths if "iops" in results.get(name, {})] for name in series},
                "queue depth", "requests a second", str))
    good = [(result["extents"], result) for result in scales.values() if "error" not in result]
    if good:
        write("scale.svg", plot.lines(
            "hits by number of cached extents", "4K, QD 128, one core, null bdevs", ["ours"],
            {"ours": [(count, it["iops"], it["low"], it["high"]) for count, it in good]}, "extents",
            "requests a second"))
        write("memory.svg", plot.lines(
            "memory by number of cached extents", "bytes an extent", ["index", "process"],
            {"index": [(count, *[it["index_bytes"] / count] * 3) for count, it in good],
             "process": [(count, *[it["resident_bytes"] / count] * 3) for count, it in good]}, "extents",
            "bytes an extent"))
    calm = {name: result for name, result in latencies.items() if "error" not in result}
    if calm:
        marks = list(runner.SHARES)
        write("latency.svg", plot.bars(
            "latency beside background work, ours", "4K, QD 32, one core", [wrapped(name) for name in calm], marks,
            {wrapped(name): {mark: (it[mark], it[mark], it[mark], plot.short(it[mark])) for mark in marks}
             for name, it in calm.items()}, "microseconds", log=True))
    return written


def wrapped(name):
    """A situation's name on two lines."""
    first, _, rest = name.partition(", ")
    return "%s\n%s" % (first, rest)


def shares(results):
    """A group of bars, as shares of the raw bdev; of the best when that was not measured."""
    rates = {name: result for name, result in results.items() if "iops" in result}
    whole = rates.get("raw", max(rates.values(), key=lambda it: it["iops"], default=None))
    return {name: (it["iops"] / whole["iops"], it["low"] / whole["iops"], it["high"] / whole["iops"],
                   plot.short(it["iops"])) for name, it in rates.items()}
