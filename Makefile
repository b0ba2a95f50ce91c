# Every command a user or developer needs. Each sets up what it lacks by itself: Debian packages, SPDK, huge pages, the
# build (spdk/*.sh say how), and what is there already costs next to nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-print-directory

RUN := spdk/run.sh
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Debian's Python is the one that python3-pytest was installed for
PYTHON := $(or $(wildcard /usr/bin/python3),python3)
# what `make test` runs of the system tests: PYTEST="-k vhost -x" narrows it down
PYTEST ?=
# more arguments of the bench, see tests/bench/compare.py --help
BENCH ?=
QUICK ?=
# random lives that `make sim` runs, and the seed of the first
SEEDS ?= 1000
FIRST ?= 1

# changes of the engine that `make mutants` samples, the seed of the sample, and more arguments of tests/mutants.py
N ?= 60
SEED ?= 1
MUTANTS ?=

.PHONY: help build demo test lint docs unit sim mutants system bdevperf bench clean packages packages-test hugepages

help:
	@echo 'make            build the target and the offline tool: $(TARGET_DIR)/release/{bcache_tgt,bcachectl}'
	@echo 'make demo       start it on files in a temporary folder, write, kill, recover, verify; prints a table'
	@echo 'make test       format, lints, documentation, shell scripts, unit and system tests'
	@echo 'make lint       the first four of those; make unit and make system: the others, one by one'
	@echo 'make docs       write docs/rpc.md and the plugin'"'"'s list of methods anew, from the tables in src'
	@echo 'make sim        SEEDS=1000 random runs of the engine in the simulator, and as many with random calls of its'
	@echo '                RPCs and devices that fail and move, from seed FIRST=1 on'
	@echo 'make mutants    change the engine in N=60 places drawn by SEED=1, one at a time, and list what no test notices:'
	@echo '                hours; goes on where it was; MUTANTS="--shard 0/2" tries every second one of the sample'
	@echo 'make bdevperf   SPDK'"'"'s bdevperf with the module linked in: $(TARGET_DIR)/release/bdevperf'
	@echo 'make bench      malloc, passthru, ours and OCF side by side: tables, JSON and plots in $(TARGET_DIR)/bench;'
	@echo '                some twenty minutes, with QUICK=1 four; BENCH="--parts hits --rounds 5" narrows it down'
	@echo 'make bench-engine  the engine alone: recovery time and memory by keys, steps of the poller, the index, single steps'
	@echo 'make clean      remove what cargo built (SPDK stays in ~/.cache/spdk-bcache)'
	@echo
	@echo 'SPDK_DIR=…      a built SPDK tree, 20.07 to 26.05, instead of the one spdk/setup.sh builds'
	@echo 'SPDK_TARBALL=…  an SPDK source tarball instead of the one in Debian'"'"'s archive'

packages:
	@spdk/packages.sh build
	@spdk/rust.sh path >/dev/null

packages-test:
	@spdk/packages.sh build test
	@spdk/rust.sh lint

hugepages:
	@spdk/hugepages.sh

build: packages
	@$(RUN) cargo build --release --features spdk --bin bcache_tgt --bin bcachectl

# bdevperf wants the module as a static library, which is the lib target's other form
bdevperf: packages
	@$(RUN) cargo build --release --features spdk --lib
	@$(RUN) spdk/bdevperf.sh $(TARGET_DIR)/release

demo: build hugepages
	@$(RUN) $(PYTHON) tests/demo.py

lint: packages-test
	@$(RUN) tests/lint.sh

docs: packages
	@WRITE_REFERENCE=1 $(RUN) cargo test --locked --quiet --test reference

unit: packages-test
	@$(RUN) cargo test --locked
	@$(RUN) cargo test --locked --features canary --test canary
	@$(RUN) tests/races.sh

sim: packages-test
	@$(RUN) cargo test --locked --quiet --profile sim --test seeds -- $(SEEDS) $(FIRST)
	@OPERATOR_SEEDS=$(SEEDS) OPERATOR_FIRST=$(FIRST) $(RUN) cargo test --locked --quiet --profile sim --test operator -- --nocapture

mutants: packages-test
	@tools=$$($(RUN) tests/mutants.sh) && PATH=$$tools:$$PATH $(RUN) $(PYTHON) tests/mutants.py --count $(N) --seed $(SEED) $(MUTANTS)

# up to four processes run at a time, with 3.2 GiB between them
system: packages-test
	@spdk/hugepages.sh 2048
	@$(MAKE) build bdevperf
	@$(RUN) $(PYTHON) -m pytest -v -ra --durations=10 tests/system $(PYTEST)

# one after the other, and the cheap ones first; each thing is built once, for which incremental builds only cost time
test: export CARGO_INCREMENTAL := 0
test: packages-test hugepages
	@$(MAKE) lint
	@$(MAKE) unit
	@$(MAKE) system

# the largest cell has four processes with 5.5 GiB between them
bench: build bdevperf
	@spdk/hugepages.sh 3072
	@$(RUN) $(PYTHON) tests/bench/compare.py $(if $(QUICK),--quick) $(BENCH)

# KEYS=100000000 takes 5 GB of memory
.PHONY: bench-engine
bench-engine: packages
	@$(RUN) cargo bench --locked --bench recovery -- $(or $(KEYS),1000000 10000000)
	@$(RUN) cargo bench --locked --bench slices
	@$(RUN) cargo bench --locked --bench index
	@$(RUN) cargo bench --locked --bench micro

clean:
	@$$(spdk/rust.sh path)/cargo clean
