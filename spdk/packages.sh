#!/usr/bin/env bash
# Installs the Debian packages that the build and the tests need: packages.sh [build|test]... (both when none is named).
#
# Only what is missing is asked for, so a second run neither needs root nor touches the network. Root (or sudo) is
# needed otherwise. Rust comes from rustup, or from Debian where that is new enough: rust.sh decides, and this script
# asks it which packages it wants. Debian 12 and 13 are what it is tried on.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
readonly HERE
# SPDK's own needs, and libclang for bindgen
readonly BUILD_PACKAGES="build-essential libiscsi-dev nasm libaio-dev libssl-dev uuid-dev libnuma-dev libcunit1-dev meson ninja-build
  autoconf automake libtool pkg-config libncurses-dev python3 python3-pyelftools libclang-dev util-linux procps xz-utils
  ca-certificates kmod"
# the Linux kernel as judge in QEMU, an iSCSI client, make-bcache, the test runner, the linter of shell scripts
readonly TEST_PACKAGES="qemu-system-x86 busybox-static cpio kmod libiscsi-bin bcache-tools zstd python3-pytest
  shellcheck git libc6-dev gcc e2fsprogs procps"

say() { echo "packages.sh: $*" >&2; }
die() {
  echo "packages.sh: $*" >&2
  exit 1
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  else
    sudo "$@"
  fi
}

# Those of the packages named that are not installed, one a line.
missing_of() {
  local package
  for package; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed' || echo "$package"
  done
}

install() {
  local missing=("$@") log
  if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    die "these Debian packages are missing, and installing them needs root or sudo: ${missing[*]}"
  fi
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  log=$(mktemp)
  if [[ -t 2 ]]; then
    log=/dev/stderr
  fi
  # The lists may be absent or old: read them anew only when the packages cannot be had by them.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" \
    >"$log" 2>&1 </dev/null || {
    say "reading the package lists"
    as_root apt-get update >>"$log" 2>&1 </dev/null || say "apt-get update had errors; going on with what it has"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" \
      >>"$log" 2>&1 </dev/null || {
      [[ -t 2 ]] || tail -n 20 "$log" >&2
      die "apt-get could not install ${missing[*]}"
    }
  }
  [[ -t 2 ]] || rm -f "$log"
}

main() {
  local group wanted=() missing more
  (($# > 0)) || set -- build test
  for group; do
    case $group in
      build) read -r -d '' -a more <<<"$BUILD_PACKAGES" || true ;;
      test) read -r -d '' -a more <<<"$TEST_PACKAGES" || true ;;
      *) die "there is no group of packages \"$group\": build and test are" ;;
    esac
    wanted+=("${more[@]}")
  done
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "this is no Debian: see to it yourself that these are here: ${wanted[*]}"
    return
  fi
  read -r -d '' -a more <<<"$("$HERE/rust.sh" packages)" || true
  wanted+=("${more[@]}")
  mapfile -t missing < <(missing_of "${wanted[@]}" | sort -u)
  ((${#missing[@]} == 0)) || install "${missing[@]}"
}

main "$@"
