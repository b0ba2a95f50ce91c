#!/usr/bin/env bash
# Runs a command with the toolchain and the SPDK tree that the project builds with: run.sh COMMAND [ARGUMENT]...
#
# Puts the folder of a new enough cargo first on PATH and sets SPDK_DIR, building SPDK first when there is none yet
# (setup.sh says where it looks). What was set up already costs a few milliseconds.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
rust=$("$HERE/rust.sh" path)
export PATH=$rust:$PATH
SPDK_DIR=$("$HERE/setup.sh")
export SPDK_DIR
exec "$@"
