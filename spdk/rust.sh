#!/usr/bin/env bash
# Finds a Rust toolchain that is new enough (the MSRV in Cargo.toml), wherever it came from.
#
#   rust.sh path      prints the folder whose cargo is to be used, or stops and says how to get one
#   rust.sh lint      checks that this cargo has fmt and clippy too
#   rust.sh packages  prints the Debian packages that would bring a toolchain, one a line: none when one is there
#                     already, none when Debian's is too old
#
# Looked at, in this order: cargo on PATH, the rustup folder (~/.cargo/bin), Debian's /usr/bin.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
readonly ROOT
readonly DEBIAN_WITH_RUST=13 # the first release whose own Rust is 1.85 or newer

die() {
  echo "rust.sh: $*" >&2
  exit 1
}

# 1.85.0 or 1.85.0+dfsg-1 as the number 1085; nothing for anything else.
as_number() {
  [[ $1 =~ ^([0-9]+)\.([0-9]+) ]] && echo $((BASH_REMATCH[1] * 1000 + BASH_REMATCH[2]))
}

msrv() {
  sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$ROOT/Cargo.toml"
}

# The folders that could have a cargo, best first.
candidates() {
  local found
  if found=$(command -v cargo); then
    dirname "$found"
  fi
  echo "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
  echo /usr/bin
}

# The version of the tool $1 ("cargo 1.85.0 (…)" and "rustc 1.85.0 (…)" both name it second), if it works at all.
version_of() {
  [[ -x $1 ]] || return 0
  "$1" --version 2>/dev/null | awk 'NR == 1 { print $2 }' || true
}

# Prints the first folder with a cargo and rustc that are new enough; false when there is none.
find_path() {
  local folder need tool version
  need=$(as_number "$(msrv)")
  while read -r folder; do
    for tool in cargo rustc; do
      version=$(version_of "$folder/$tool")
      (($(as_number "${version:-0}" || echo 0) >= need)) || continue 2
    done
    echo "$folder"
    return 0
  done < <(candidates)
  return 1
}

debian_release() {
  # shellcheck disable=SC1091 # present on every Debian
  (. /etc/os-release 2>/dev/null && [[ ${ID:-} == debian ]] && echo "${VERSION_ID:-99}") || echo 0
}

debian_has_it() {
  local release
  release=$(debian_release)
  ((${release%%.*} >= DEBIAN_WITH_RUST))
}

print_path() {
  find_path && return
  if debian_has_it; then
    die "there is no Rust $(msrv) or newer: run spdk/packages.sh, which installs Debian's, or install one with rustup"
  fi
  die "there is no Rust $(msrv) or newer here, and this release of Debian packages an older one. Install Rust with" \
    "rustup (https://rustup.rs), as the user who builds, and run make again. Looked in: $(candidates | tr '\n' ' ')"
}

check_lint() {
  local folder part
  folder=$(print_path)
  for part in fmt clippy; do
    PATH=$folder:$PATH "$folder/cargo" "$part" --version >/dev/null 2>&1 ||
      die "the Rust in $folder has no cargo $part: rustup component add rustfmt clippy" \
        "(or, with Debian's Rust, apt-get install rustfmt rust-clippy)"
  done
}

print_packages() {
  local folder
  folder=$(find_path) || folder=
  if [[ $folder == /usr/bin ]] || { [[ -z $folder ]] && debian_has_it; }; then
    printf '%s\n' cargo rustc rustfmt rust-clippy
  fi
}

case ${1:-} in
  path) print_path ;;
  lint) check_lint ;;
  packages) print_packages ;;
  *) die "usage: rust.sh path|lint|packages" ;;
esac
