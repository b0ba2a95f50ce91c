#!/usr/bin/env bash
# Builds SPDK's bdevperf with the bcache module linked in: bdevperf.sh FOLDER, which makes FOLDER/bdevperf out of the
# module's static library FOLDER/libspdk_bcache.a and the source in $SPDK_DIR. Does nothing when bdevperf is newer than both.
#
# Source and rules are the SPDK tree's own; the tree is only read.
set -euo pipefail

die() {
  echo "bdevperf.sh: $*" >&2
  exit 1
}

HERE=$(cd "$(dirname "$0")" && pwd)
[[ -d ${1:-} ]] || die "usage: bdevperf.sh FOLDER, with libspdk_bcache.a in it"
folder=$(cd "$1" && pwd)
module=$folder/libspdk_bcache.a
: "${SPDK_DIR:?"bdevperf.sh: SPDK_DIR is not set: call it by spdk/run.sh"}"
[[ -e $module ]] || die "$module is not there: cargo build --release --features spdk --lib makes it"

source=
for place in test/bdev/bdevperf examples/bdev/bdevperf; do # before and after SPDK 22.01
  [[ ! -e $SPDK_DIR/$place/bdevperf.c ]] || source=$SPDK_DIR/$place/bdevperf.c
done
[[ -n $source ]] || die "$SPDK_DIR has no bdevperf.c: was its test or examples folder left out?"

# false as soon as anything that went into it is newer, or it was made with another SPDK tree
is_current() {
  [[ $folder/bdevperf -nt $module && $folder/bdevperf -nt $SPDK_DIR/build/lib/libspdk_bdev.a ]] &&
    [[ $folder/bdevperf -nt $HERE/bdevperf.mk && $(cat "$folder/bdevperf.of" 2>/dev/null) == "$SPDK_DIR" ]]
}

if is_current; then
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$source" "$work/bdevperf.c"
unset MAKEFLAGS MFLAGS MAKELEVEL
make -C "$work" -f "$HERE/bdevperf.mk" SPDK_ROOT_DIR="$SPDK_DIR" MODULE="$module" >"$work/log" 2>&1 || {
  tail -n 30 "$work/log" >&2
  die "linking bdevperf with the module failed"
}
mv "$work/bdevperf" "$folder/bdevperf"
echo "$SPDK_DIR" >"$folder/bdevperf.of"
echo "bdevperf.sh: $folder/bdevperf" >&2
