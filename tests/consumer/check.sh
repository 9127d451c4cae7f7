#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# check.sh package|subdirectory|bare COMPILER SOURCE_DIR BUILD_DIR INCLUDE_DIRS (separated by ':')
# Builds and runs this folder's program against the installed package, against the source tree as a
# subdirectory, or with nothing but the compiler.
set -euo pipefail
way=$1 compiler=$2 source_dir=$3 build_dir=$4
IFS=: read -ra directories <<<"$5"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build_with_cmake() {
  cmake -S "$here" -B "$work/build" -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=Debug "$@"
  cmake --build "$work/build"
  "$work/build/consumer"
}

case $way in
  package)
    cmake --install "$build_dir" --prefix "$work/prefix" >/dev/null
    if grep -rqF -e "$source_dir" -e march= "$work/prefix"; then
      echo "the installed package names its source tree or our own compiler flags"
      exit 1
    fi
    build_with_cmake -DCMAKE_PREFIX_PATH="$work/prefix"
    ;;
  subdirectory)
    build_with_cmake -DDEQ_SOURCE_DIR="$source_dir"
    for folder in tests bench examples; do
      if [[ -e $work/build/deq/$folder ]]; then
        echo "a subproject must not build $folder/ unasked"
        exit 1
      fi
    done
    ;;
  bare)
    "$compiler" -std=c++20 -pthread "${directories[@]/#/-I}" "$here/main.cpp" -o "$work/consumer"
    "$work/consumer"
    ;;
  *)
    echo "unknown way: $way"
    exit 1
    ;;
esac
