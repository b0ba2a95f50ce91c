#!/usr/bin/env bash
# Prints the folder of a cargo-mutants that tests/mutants.py can use, and installs one first where there is none: into
# ~/.cache/spdk-bcache, from the crate registry, with the Rust that the project builds with.
set -euo pipefail

readonly VERSION=${MUTANTS_VERSION:-27.1.0}
readonly HOME_OF=${XDG_CACHE_HOME:-$HOME/.cache}/spdk-bcache/cargo-mutants

if ! command -v cargo-mutants >/dev/null && [[ ! -x $HOME_OF/bin/cargo-mutants ]]; then
  echo "mutants.sh: installing cargo-mutants $VERSION, which takes a few minutes" >&2
  cargo install --locked --quiet --root "$HOME_OF" --version "$VERSION" cargo-mutants >&2 || {
    echo "mutants.sh: cargo-mutants $VERSION cannot be installed; is the crate registry reachable?" >&2
    exit 1
  }
fi
echo "$HOME_OF/bin"
