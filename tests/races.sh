#!/usr/bin/env bash
# Looks for races: loom goes through every interleaving of small models of the lockless parts, ThreadSanitizer watches
# the index's stress test. `spdk/run.sh tests/races.sh` sets up what it needs. Each has a target folder of its own, so that
# other builds stay as they are; the second run takes seconds.
#
# Why these: CI has a stable Rust, and Miri comes with a nightly one only. Valgrind's helgrind and drd know nothing of
# atomics and take each for a race. ThreadSanitizer is behind RUSTC_BOOTSTRAP=1; std is not built for it, so what it says
# of std's own reference counts and channels is suppressed (races.supp), and what std's fences order it does not see. It
# needs a runtime that rustup's toolchains bring and Debian's rustc does not: there loom runs alone, and a line says so.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
# Both run for seconds: most of the time would go into optimizing.
export CARGO_PROFILE_TEST_OPT_LEVEL=0 CARGO_PROFILE_TEST_DEBUG=0 CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0
host=$(rustc -vV | sed -n 's/^host: //p')

echo "races: loom" >&2
CARGO_TARGET_DIR=$target/loom RUSTFLAGS="--cfg loom" cargo test --locked --lib loom

# The flag that lets std be linked is needed by newer compilers and unknown to 1.85.
sanitize() {
  local flags="-Zsanitizer=thread"
  if rustc -C help | grep -q unsafe-allow-abi-mismatch; then
    flags+=" -Cunsafe-allow-abi-mismatch=sanitizer"
  fi
  CARGO_TARGET_DIR=$target/tsan RUSTC_BOOTSTRAP=1 RUSTFLAGS=$flags \
    TSAN_OPTIONS="suppressions=$PWD/tests/races.supp" \
    cargo test --locked --target "$host" --lib index::stress -- --test-threads=1
}

runtime=$(find "$(rustc --print sysroot)/lib/rustlib/$host/lib" -name 'librustc*_rt.tsan.a' 2>/dev/null)
if [[ -n $runtime ]]; then
  echo "races: ThreadSanitizer" >&2
  sanitize
else
  echo "races: ThreadSanitizer LEFT OUT: $(rustc --version) brings no runtime for it; a toolchain of rustup does" >&2
fi
