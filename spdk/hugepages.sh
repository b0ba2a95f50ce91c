#!/usr/bin/env bash
# Makes 2 MiB huge pages for SPDK and mounts hugetlbfs where it is not: hugepages.sh [PAGES].
#
# At least PAGES (1024 when not given, 2 GiB) are free afterwards: pages that other programs hold are no use to a target.
# A machine with little memory gets half of what it has free, and a word about it; fewer than 256 free pages are an
# error, because no SPDK target starts in them. Nothing is done when enough are free already, so then no root is needed.
# HUGEPAGES_SYSFS names another folder than the kernel's, for tests.
set -euo pipefail

readonly HUGE_MOUNT=/dev/hugepages
readonly LEAST_PAGES=256
readonly SYSFS=${HUGEPAGES_SYSFS:-/sys/kernel/mm/hugepages/hugepages-2048kB}
readonly PAGES_FILE=$SYSFS/nr_hugepages
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

# Pages that a new program can have: those that are free, and not promised to one that runs.
free_pages() {
  echo $(($(<"$SYSFS/free_hugepages") - $(<"$SYSFS/resv_hugepages")))
}

mounted() {
  awk '$3 == "hugetlbfs" { found = 1 } END { exit !found }' /proc/mounts
}

main() {
  local free want available_mib
  [[ $NEEDED_PAGES =~ ^[1-9][0-9]*$ ]] || die "PAGES is \"$NEEDED_PAGES\", which is not a number above 0"
  [[ -r $PAGES_FILE ]] || die "this kernel has no 2 MiB huge pages ($PAGES_FILE is missing)"
  free=$(free_pages)
  if ((free < NEEDED_PAGES)); then
    want=$((NEEDED_PAGES - free))
    available_mib=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)
    # 2 MiB a page and half of the memory: as many pages as a quarter of the free MiB
    if ((want > available_mib / 4)); then
      say "only $available_mib MiB of memory are free: asking for $((available_mib / 4)) more pages instead of $want"
      want=$((available_mib / 4))
    fi
    want=$(($(<"$PAGES_FILE") + want))
    set_pages "$want"
    if (($(<"$PAGES_FILE") < want || $(free_pages) < NEEDED_PAGES)); then
      # free memory may be there in pieces too small for a huge page: let the kernel tidy up, and ask again
      as_root sh -c 'sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory' || true
      set_pages "$want"
    fi
    free=$(free_pages)
    say "$free of $(<"$PAGES_FILE") huge pages of 2 MiB are free"
  fi
  ((free >= LEAST_PAGES || free >= NEEDED_PAGES)) ||
    die "only $free of $(<"$PAGES_FILE") huge pages of 2 MiB are free, and $LEAST_PAGES are the least:" \
      "end the programs that hold the others, or free memory, and run spdk/hugepages.sh $NEEDED_PAGES again"
  if ! mounted; then
    as_root mkdir -p "$HUGE_MOUNT"
    as_root mount -t hugetlbfs -o pagesize=2M hugetlbfs "$HUGE_MOUNT"
    say "mounted hugetlbfs at $HUGE_MOUNT"
  fi
}

main
