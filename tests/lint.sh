#!/usr/bin/env bash
# The checks that run nothing of the project: rustfmt, clippy and rustdoc without warnings, both with SPDK and without,
# no complaint of shellcheck about any shell script, and that every Python file compiles.
# `spdk/run.sh tests/lint.sh` sets up what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
  echo "lint: $1" >&2
  shift
  "$@"
}

# Those of the tree's files whose names end in .sh, or whose first line names a shell.
is_shell_script() {
  [[ $1 == *.sh ]] || head -c 64 "$1" | tr -d '\0' | head -n 1 | grep -qE '^#!.*\b(bash|sh)\b'
}

python_compiles() {
  python3 -c 'import ast, sys
for name in sys.argv[1:]:
    ast.parse(open(name, encoding="utf-8").read(), name)' "$@"
}

# not git's list: a tree from a tarball is checked, too
files=$(find . \( -name .git -o -name target -o -name __pycache__ \) -prune -o -type f -print)
shell_files=()
python_files=()
while IFS= read -r file; do
  if [[ $file == *.py ]]; then
    python_files+=("$file")
  elif is_shell_script "$file"; then
    shell_files+=("$file")
  fi
done <<<"$files"

step "rustfmt" cargo fmt --all --check
step "clippy" cargo clippy --locked --all-targets --features canary -- -D warnings
step "clippy, with SPDK" cargo clippy --locked --all-targets --features spdk -- -D warnings
RUSTDOCFLAGS="-D warnings" step "rustdoc" cargo doc --locked --no-deps --quiet
RUSTDOCFLAGS="-D warnings" step "rustdoc, with SPDK" cargo doc --locked --no-deps --quiet --features spdk
step "shellcheck" shellcheck "${shell_files[@]}"
step "python" python_compiles "${python_files[@]}"
