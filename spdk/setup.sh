#!/usr/bin/env bash
# Finds or builds an SPDK tree and prints its folder.
#
# The folder is the last and only line on standard output; everything else goes to standard error, so that
# `SPDK_DIR=$(spdk/setup.sh)` is all a caller needs. In this order it takes
#   1. $SPDK_DIR, a tree that its user built (20.07 to 26.05), checked but never touched;
#   2. an earlier build in the user's cache folder (${XDG_CACHE_HOME:-~/.cache}/spdk-bcache);
#   3. the source tarball $SPDK_TARBALL (an SPDK tree, or a ceph source tarball with one in src/spdk);
#   4. the source package `ceph` of Debian's archive, which carries SPDK 20.07 and all its submodules.
#
# A build counts only when its stamp was written, which is the last thing done, so one that was broken off is begun
# anew. A lock keeps two set-ups from building at once: the second waits and then finds the first one's work. The
# machine's apt lists and sources stay as they are: the archive is read through a private sources list and state
# folder, and the tarball's checksum comes from the index that the distribution's keyring signed.
#
# Exit status: 0 with the folder printed; 75 when Debian's archive did not give the source, so that trying again later,
# or naming a tarball, helps; 1 for everything else.
#
# The objects are compiled for this processor (-march=native), so the folder's name has the compiler's version and the
# processor's features in it: a home folder that moved to another machine gets a build of its own.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=spdk/mend.sh
source "$HERE/mend.sh"

readonly RECIPE=4 # part of the build's name: raise it when the way of building changes
readonly VERSION_MIN=2007 VERSION_MAX=2605
readonly CACHE=${XDG_CACHE_HOME:-${HOME:?"set HOME or XDG_CACHE_HOME: there is no folder to build SPDK in"}/.cache}/spdk-bcache
readonly SUITES="trixie sid" # both carry the same SPDK
readonly COMPILE_STEPS=515   # about how many lines the build prints: only for the percentage shown
readonly STATUS_TRY_LATER=75 # sysexits.h's EX_TEMPFAIL

say() { echo "setup.sh: $*" >&2; }
die() {
  echo "setup.sh: $*" >&2
  exit 1
}

# The release of the tree $1 as a number (20.07 is 2007), or nothing where there is none.
spdk_version() {
  local header=$1/include/spdk/version.h
  [[ -r $header ]] || return 0
  awk '$1 == "#define" && $2 == "SPDK_VERSION_MAJOR" { major = $3 }
       $1 == "#define" && $2 == "SPDK_VERSION_MINOR" { minor = $3 }
       END { printf "%d%02d\n", major, minor }' "$header"
}

# Whether the tree $1 is built whole enough for our module and target to link against.
is_built() {
  [[ -e $1/build/lib/libspdk_bdev.a && -e $1/build/lib/libspdk_event.a ]]
}

use_spdk_dir() {
  local dir version
  dir=$(cd "$SPDK_DIR" 2>/dev/null && pwd) || die "SPDK_DIR is $SPDK_DIR, which is no folder"
  version=$(spdk_version "$dir")
  [[ -n $version ]] || die "SPDK_DIR is $dir, which has no include/spdk/version.h: is it an SPDK source tree?"
  ((version >= VERSION_MIN && version <= VERSION_MAX)) ||
    die "SPDK_DIR is $dir, SPDK ${version:0:2}.${version:2}: 20.07 to 26.05 are supported"
  is_built "$dir" || die "SPDK_DIR is $dir, which is not built: run ./configure and make there, with static libraries"
  echo "$dir"
}

# What tells this machine's builds from another's: the way of building, the compiler, the processor's features.
build_key() {
  {
    echo "$RECIPE"
    "${CC:-gcc}" -dumpfullversion 2>/dev/null || true
    uname -m
    grep -m1 -E '^(flags|Features)' /proc/cpuinfo || true
  } | sha256sum | cut -c1-12
}

require_tools() {
  local tool missing=()
  for tool in gcc g++ make nasm meson ninja autoconf automake libtoolize pkg-config python3 flock tar xz; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  ((${#missing[@]} == 0)) || die "SPDK's build needs ${missing[*]}: run spdk/packages.sh first"
}

# Unpacks the SPDK tree out of the tarball $1 as the folder $2.
unpack() {
  local tarball=$1 into=$2 found
  say "unpacking $tarball"
  rm -rf "$into" "$into.unpacking"
  mkdir -p "$into.unpacking"
  case ${tarball##*/} in
    ceph*) tar -xf "$tarball" -C "$into.unpacking" --no-same-owner --wildcards '*/src/spdk/*' ;;
    *) tar -xf "$tarball" -C "$into.unpacking" --no-same-owner ;;
  esac || die "$tarball does not unpack"
  found=$(find "$into.unpacking" -maxdepth 6 -path '*/include/spdk/version.h' -print -quit)
  [[ -n $found ]] || die "$tarball has no SPDK tree in it"
  mv "${found%/include/spdk/version.h}" "$into"
  rm -rf "$into.unpacking"
}

# Where this machine gets Debian's packages from: its own configuration names the mirror. Third parties' archives and
# Debian's security archive have other labels; where the label is not known yet, the usual path of a mirror tells.
debian_mirror() {
  apt-get indextargets --format "\$(LABEL) \$(REPO_URI)" 'Created-By: Packages' 2>/dev/null |
    awk '$1 == "Debian" { print $2; found = 1; exit }
         $NF ~ /\/debian\/?$/ { likely = $NF }
         END { if (!found && likely) print likely }'
}

# Fetches the ceph source tarball from Debian's archive into the folder $1 and prints its path.
fetch_tarball() {
  local folder=$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror suite line uri name checksum options
  command -v apt-get >/dev/null || die "there is no apt-get here: name an SPDK tree in SPDK_DIR or a tarball in SPDK_TARBALL"
  [[ -r $keyring ]] || keyring=${keyring%.gpg}.pgp
  [[ -r $keyring ]] || die "Debian's archive keyring is missing: install the package debian-archive-keyring"
  mirror=$(debian_mirror)
  [[ -n $mirror ]] || die "apt's sources name no Debian mirror: name an SPDK tree in SPDK_DIR or a tarball in SPDK_TARBALL"
  for suite in $SUITES; do
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
    echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$folder/apt/sources.list"
    options=(-o "Dir::Etc::SourceList=$folder/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
      -o "Dir::State::Lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache" -o Acquire::Retries=2
      -o Acquire::http::Timeout=30 -o APT::Sandbox::User="$(id -un)" -o APT::Update::Post-Invoke-Success::=
      -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null)
    say "reading the index of Debian's sources ($suite)"
    apt-get "${options[@]}" -qq update >&2 || continue
    # Lines of the form: 'URI' NAME SIZE ALGORITHM:DIGEST
    line=$(apt-get "${options[@]}" -qq --print-uris --only-source --download-only source ceph 2>/dev/null |
      grep -E "^'[^']+\.orig\.tar\.[a-z0-9]+' " | head -n 1) || continue
    uri=${line#\'}
    uri=${uri%%\'*}
    read -r name _ checksum <<<"${line#*\' }"
    [[ $checksum == SHA256:* || $checksum == SHA512:* ]] || continue
    say "fetching $name from Debian's archive"
    if /usr/lib/apt/apt-helper "${options[@]}" download-file "$uri" "$folder/$name" "$checksum" >&2; then
      rm -rf "$folder/apt"
      echo "$folder/$name"
      return 0
    fi
  done
  rm -rf "$folder/apt"
  return 1
}

# Shows how far the build is that writes the log $1, until it is killed: a running line on a terminal, else a line
# every half minute.
show_progress() {
  local log=$1 began=$SECONDS steps last_said=0 percent
  while sleep 1; do
    steps=$(grep -cE '^ +(CC|CXX|LIB|LINK|SO) |^\[[0-9]+/[0-9]+\] ' "$log" || true)
    percent=$((steps * 100 / COMPILE_STEPS))
    ((percent <= 99)) || percent=99
    if [[ -t 2 ]]; then
      printf '\r\033[Ksetup.sh: building SPDK: %3d %%, %d files, %d s' "$percent" "$steps" $((SECONDS - began)) >&2
    elif ((SECONDS - began - last_said >= 30)); then
      last_said=$((SECONDS - began))
      say "building SPDK: $percent %, $steps files, $last_said s"
    fi
  done
}

# One step of the build: runs the command that follows the name $1, its output in build.log.
build_step() {
  local name=$1
  shift
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
  say "$name (log: $PWD/build.log)"
  "$@" >>build.log 2>&1 </dev/null || {
    [[ ! -t 2 ]] || echo >&2
    tail -n 30 build.log >&2
    die "$name failed; the lines above are the end of $PWD/build.log"
  }
}

# Configures and compiles the tree in the folder $1: the libraries, the targets and bdevperf.
compile() {
  local jobs progress
  cd "$1"
  jobs=$(nproc)
  : >build.log
  # Through the environment, because on make's command line they would replace SPDK's own flags. 20.07 is older than
  # glibc's arc4random and than compilers that take its pointer conversions for errors.
  export CFLAGS="-w -DHAVE_ARC4RANDOM -fpermissive"
  unset MAKEFLAGS MFLAGS MAKELEVEL
  build_step "configuring SPDK" ./configure --disable-unit-tests --disable-tests --disable-examples --with-ocf
  show_progress build.log &
  progress=$!
  # shellcheck disable=SC2064 # the process number is wanted as it is now
  trap "kill $progress 2>/dev/null || true" EXIT
  build_step "compiling SPDK and DPDK" make -j"$jobs"
  build_step "compiling bdevperf" make -j"$jobs" -C test/bdev/bdevperf
  kill "$progress" 2>/dev/null || true
  trap - EXIT
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

main() {
  local key build stamp tarball
  if [[ -n ${SPDK_DIR:-} ]]; then
    use_spdk_dir
    return
  fi
  key=$(build_key)
  build=$CACHE/spdk-$key
  stamp=$build/.built
  if [[ -e $stamp ]]; then
    echo "$build"
    return
  fi
  require_tools
  mkdir -p "$CACHE"
  exec 9>"$CACHE/lock"
  if ! flock -n 9; then
    say "another set-up is at work; waiting for it"
    flock 9
  fi
  if [[ ! -e $stamp ]]; then
    rm -rf "$build"
    if [[ -n ${SPDK_TARBALL:-} ]]; then
      tarball=$(realpath -e "$SPDK_TARBALL") || die "SPDK_TARBALL is $SPDK_TARBALL, which does not exist"
    else
      tarball=$(fetch_tarball "$CACHE") || {
        say "Debian's archive gave no SPDK: name a tree in SPDK_DIR or a tarball in SPDK_TARBALL, or try again later"
        exit "$STATUS_TRY_LATER"
      }
    fi
    unpack "$tarball" "$build"
    mend "$build"
    [[ -n ${SPDK_TARBALL:-} ]] || rm -f "$tarball"
    # 9 is the lock: a process that the build leaves behind must not go on holding it
    (compile "$build") 9>&-
    is_built "$build" || die "SPDK's build left no libraries in $build/build/lib"
    : >"$stamp"
    say "SPDK is built: $build"
  fi
  echo "$build"
}

main "$@"
