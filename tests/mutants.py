#!/usr/bin/env python3
"""Changes the engine in one place at a time, and looks whether the tests notice: `make mutants N=60 SEED=1`.

cargo-mutants lists the changes that it knows in the modules that hold data; a sample of N is drawn from that list by
SEED. Each is put into a copy of the committed tree. The unit tests of its module run first, then random lives of the
operator's world for LIVES seconds, then, where neither notices it, all tests of `cargo test`. What nothing notices
survives, and is listed by function and change.

The copy, its build and the results are in target/mutants: a run that is cut short goes on where it was, and
`--shard 0/2` takes every second of the sample, for two machines. Hours on two cores; no part of `make test`.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("request", "journal", "alloc", "btree", "gc", "writeback", "set", "index")
# Seeds that no machine lives through in the time given: the clock ends the lives.
SEEDS = 1_000_000
# Seconds after which a change that makes unit tests hang counts as noticed.
UNIT_TESTS_S = 600
# The same for lives, beyond the time that they have to begin in.
LIVES_END_S = 120
# The same for all tests.
ALL_TESTS_S = 1800
BUILD_S = 3600
# What may notice a change, in the order in which it is asked.
NOTICED = ("unit tests", "lives", "other tests")
# A mutant is built once and run for two minutes: what the compiler keeps from the build before counts for more than speed.
PROFILE = "sim"
QUICK_BUILDS = {
    "CARGO_INCREMENTAL": "1",
    "CARGO_PROFILE_SIM_OPT_LEVEL": "2",
    "CARGO_PROFILE_SIM_CODEGEN_UNITS": "64",
    "CARGO_PROFILE_SIM_DEBUG": "0",
}


def say(text):
    print(f"mutants: {text}", file=sys.stderr, flush=True)


def mutants_of(tree):
    """All changes that cargo-mutants knows in the modules, in an order that does not depend on it."""
    command = ["cargo", "mutants", "--list", "--json", "--diff", "--dir", str(tree)]
    for module in MODULES:
        command += ["--file", f"src/{module}/**"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tree)
    found = json.loads(listed.stdout)
    return sorted(found, key=lambda mutant: mutant["name"])


def copy_of_head(folder):
    """The committed tree, without what was changed in it before; the build beside it stays."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    archive = subprocess.Popen(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(tree)], stdin=archive.stdout, check=True)
    if archive.wait() != 0:
        sys.exit("mutants: git archive failed; the tree must be a git repository")
    return tree


class Bench:
    """The copy of the tree, and how the tests run in it."""

    def __init__(self, tree, folder, lives_s):
        self.tree = tree
        self.lives_s = lives_s
        self.log = folder / "log"
        self.env = dict(os.environ, CARGO_TARGET_DIR=str(folder / "target"), **QUICK_BUILDS)

    def patch(self, mutant, *options):
        command = ["patch", "--quiet", *options, mutant["file"]]
        subprocess.run(command, input=mutant["diff"], text=True, cwd=self.tree, check=True)

    def run(self, command, limit_s, enough=None, **more):
        """Runs a command; "failed", "passed" or "late". `enough`, a pattern of a line that it may print, ends it.
        `more` is added to its environment."""
        began, env = time.monotonic(), {**self.env, **more}
        with open(self.log, "w+", encoding="utf-8", errors="replace") as log:
            run = subprocess.Popen(command, cwd=self.tree, env=env, stdout=log, stderr=log, start_new_session=True)
            try:
                while run.poll() is None:
                    if time.monotonic() - began > limit_s:
                        return "late"
                    if enough and re.search(enough, Path(self.log).read_text(errors="replace")):
                        return "failed"
                    time.sleep(0.5)
            finally:
                if run.poll() is None:
                    os.killpg(run.pid, 9)
                    run.wait()
        return "passed" if run.returncode == 0 else "failed"

    def judge(self, mutant, seed):
        """What notices a change that is in the tree: one of NOTICED, or "survived"; or "does not build"."""
        module = mutant["file"].split("/")[1]
        cargo = ["cargo", "test", "--locked", "--quiet", "--profile", PROFILE]
        unit, lives = [*cargo, "--lib"], [*cargo, "--test", "operator"]
        if self.run([*unit, "--no-run"], BUILD_S) != "passed":
            return "does not build"
        if self.run([*unit, f"{module}::"], UNIT_TESTS_S) != "passed":
            return "unit tests"
        if self.run([*lives, "--no-run"], BUILD_S) != "passed":
            return "does not build"
        drawn = {"SEEDS": SEEDS, "FIRST": seed * SEEDS + 1, "SECONDS": self.lives_s}
        drawn = {f"OPERATOR_{name}": str(value) for name, value in drawn.items()}
        if self.run([*lives, "--", "--nocapture"], self.lives_s + LIVES_END_S, r"\n *replay: ", **drawn) != "passed":
            return "lives"
        return "survived" if self.run([*cargo, "--tests"], ALL_TESTS_S) == "passed" else "other tests"


def report(results):
    tried = [result for result in results if result["by"] != "does not build"]
    counts = {by: sum(result["by"] == by for result in results) for by in (*NOTICED, "survived", "does not build")}
    for by, count in counts.items():
        print(f"{count:5} {by}")
    for result in tried:
        if result["by"] in ("other tests", "survived"):
            print(f"{result['by']}: {result['name']}")
    if tried:
        quick, killed = counts["unit tests"] + counts["lives"], len(tried) - counts["survived"]
        print(f"{killed} of {len(tried)} changes are noticed: {100 * killed / len(tried):.0f} %;", end=" ")
        print(f"by the unit tests of their modules or by lives: {100 * quick / len(tried):.0f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="changes in the sample")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample")
    parser.add_argument("--lives", type=int, default=120, help="seconds of random lives for each")
    parser.add_argument("--shard", default="0/1", help="which part of the sample, as 0/2 and 1/2")
    parser.add_argument("--list", action="store_true", help="print the sample and end")
    args = parser.parse_args()
    part, parts = (int(number) for number in args.shard.split("/"))

    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants" / f"{part}of{parts}"
    tree = copy_of_head(folder)
    all_mutants = mutants_of(tree)
    sample = random.Random(args.seed).sample(all_mutants, min(args.count, len(all_mutants)))[part::parts]
    if args.list:
        print("\n".join(mutant["name"] for mutant in sample))
        return
    say(f"{len(all_mutants)} changes are known, {len(sample)} are tried")
    # What another commit's tests noticed says nothing of this one's.
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    kept = folder / f"results-{head.stdout[:12]}.jsonl"
    known = {}
    if kept.exists():
        known = {result["name"]: result for result in map(json.loads, kept.read_text().splitlines())}
    bench = Bench(tree, folder, args.lives)
    for nr, mutant in enumerate(sample, 1):
        name = mutant["name"]
        if name not in known:
            bench.patch(mutant)
            began = time.monotonic()
            by = bench.judge(mutant, args.seed)
            bench.patch(mutant, "--reverse")
            known[name] = {"name": name, "by": by, "seconds": round(time.monotonic() - began)}
            with open(kept, "a", encoding="utf-8") as out:
                out.write(json.dumps(known[name]) + "\n")
        say(f"{nr}/{len(sample)} {known[name]['by']}: {name}")
    report([known[mutant["name"]] for mutant in sample])


if __name__ == "__main__":
    main()
