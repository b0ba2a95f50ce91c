"""The bench, run small: all its figures are produced and its files are whole. What the figures are is not looked at."""

import json
import os
import sys
import xml.etree.ElementTree

import pytest

from kit import tools

CANDIDATES = {"raw", "passthru", "ours", "OCF"}
LATENCIES = {"median", "99 %", "99.99 %", "worst"}


def bench(folder, *arguments, expect=(0,)):
    """Runs the bench on the highest core there is; returns what it printed, and its JSON."""
    core = max(os.sched_getaffinity(0))
    text = tools.run(sys.executable, tools.ROOT / "tests" / "bench" / "compare.py", "--smoke", "--cpumask",
                     "%#x" % (1 << core), "--out", folder / "bench", *arguments, limit=200, expect=expect)
    return text, json.loads((folder / "bench" / "results.json").read_text())


@pytest.mark.limit(240)
def test_all_figures_are_produced(folder):
    text, results = bench(folder)
    assert {cell["workload"] for cell in results["cells"]} == {"hits", "seqwrite"}
    for cell in results["cells"]:
        assert set(cell["results"]) == CANDIDATES
        for found in cell["results"].values():
            assert 0 < found["low"] <= found["iops"] <= found["high"] and found["ticks"] > 0
            assert cell["depth"] > 1 or LATENCIES <= set(found["latency_us"])
        assert {"hits", "written_bytes", "written_back_bytes"} <= set(cell["results"]["ours"])
    for found in [*results["latency"].values(), *results["scale"].values()]:
        assert found["iops"] > 0
    assert all(LATENCIES <= set(found) for found in results["latency"].values())
    assert all({"extents", "index_bytes", "resident_bytes"} <= set(found) for found in results["scale"].values())
    assert {row["name"] for row in results["targets"] if row["measured"] is not None} >= {
        "hit at depth 1, over passthru", "memory an extent"}
    assert {"cpu", "cores", "kernel"} <= set(results["machine"]) and results["notes"]
    plots = {path.name: xml.etree.ElementTree.parse(path).getroot() for path in (folder / "bench").glob("*.svg")}
    assert set(plots) == {"hits.svg", "seqwrite.svg", "latency.svg", "scale.svg", "memory.svg"}
    assert all(root.tag.endswith("svg") and len(root) > 10 for root in plots.values())
    for title in ("random read, all hits", "latency beside background work", "figure to reach"):
        assert title in text


@pytest.mark.limit(120)
def test_a_cell_that_fails_says_why_and_the_others_go_on(folder):
    """A program that is no bdevperf fails each candidate; the run comes to its end."""
    text, results = bench(folder, "--parts", "hits", "--bdevperf", "/bin/false", expect=(1,))
    found = results["cells"][0]["results"]
    assert set(found) == CANDIDATES and all("false ended with 1" in entry["error"] for entry in found.values())
    assert "4 measurements failed" in text
