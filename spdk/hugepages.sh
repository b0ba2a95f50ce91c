#!/usr/bin/env bash
# Makes 2 MiB huge pages for SPDK and mounts hugetlbfs where it is not: hugepages.sh [PAGES].
#
# At least PAGES (1024 when not given, 2 GiB) are there afterwards; more that somebody else made stay. A machine with
# little memory gets half of what it has free, and a word about it; fewer than 256 pages are an error, because no SPDK
# target starts its default malloc bdevs in them. Nothing is done when all is well already, so then no root is needed.
set -euo pipefail

readonly HUGE_MOUNT=/dev/hugepages
readonly LEAST_PAGES=256
readonly PAGES_FILE=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
readonly NEEDED_PAGES=${1:-1024}

say() { echo "hugepages.sh: $*" >&2; }
die() {
  echo "hugepages.sh: $*" >&2
  exit 1
}

# Runs a command as root, by sudo where that is needed.
as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "huge pages need root, and there is no sudo: run spdk/hugepages.sh as root once"
  fi
}

set_pages() {
  # shellcheck disable=SC2016 # the inner shell expands it
  as_root sh -c 'echo "$1" >"$2"' sh "$1" "$PAGES_FILE"
}

mounted() {
  awk '$3 == "hugetlbfs" { found = 1 } END { exit !found }' /proc/mounts
}

main() {
  local have want available_mib
  [[ $NEEDED_PAGES =~ ^[1-9][0-9]*$ ]] || die "PAGES is \"$NEEDED_PAGES\", which is not a number above 0"
  [[ -r $PAGES_FILE ]] || die "this kernel has no 2 MiB huge pages ($PAGES_FILE is missing)"
  have=$(<"$PAGES_FILE")
  if ((have < NEEDED_PAGES)); then
    want=$NEEDED_PAGES
    available_mib=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)
    # 2 MiB a page and half of the memory: as many pages as a quarter of the free MiB
    if ((want - have > available_mib / 4)); then
      want=$((have + available_mib / 4))
      say "only $available_mib MiB are free: asking for $want pages instead of $NEEDED_PAGES"
    fi
    set_pages "$want"
    have=$(<"$PAGES_FILE")
    if ((have < want)); then
      # free pages may be there in pieces too small for a huge one: let the kernel tidy up, and ask again
      as_root sh -c 'sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory' || true
      set_pages "$want"
      have=$(<"$PAGES_FILE")
    fi
    say "$have huge pages of 2 MiB"
  fi
  ((have >= LEAST_PAGES || have >= NEEDED_PAGES)) ||
    die "the kernel gave $have huge pages of 2 MiB, and $LEAST_PAGES are the least: free some memory"
  if ! mounted; then
    as_root mkdir -p "$HUGE_MOUNT"
    as_root mount -t hugetlbfs -o pagesize=2M hugetlbfs "$HUGE_MOUNT"
    say "mounted hugetlbfs at $HUGE_MOUNT"
  fi
}

main
