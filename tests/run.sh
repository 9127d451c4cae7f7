#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds and runs all tests, from any directory: bash tests/run.sh [ARGUMENTS OF CTEST]
# For instance `bash tests/run.sh -R broyden`. Builds into build/tests, incrementally.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tests/ensure_packages.sh
# libdnnl-dev's package of CMake wants OpenCL's.
ensure_packages build-essential cmake ninja-build libeigen3-dev doctest-dev libdnnl-dev \
  ocl-icd-opencl-dev

build=build/tests
cache=$build/CMakeCache.txt
# A build directory that came along with a copied or renamed tree is of no use.
if [[ -f $cache ]] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd -P)" "$cache"; then
  rm -rf "$build"
fi
generator=()
if [[ ! -f $cache ]] && command -v ninja >/dev/null; then generator=(-G Ninja); fi

jobs=$(nproc)
cmake -S . -B "$build" ${generator[@]+"${generator[@]}"} -DDEQ_BUILD_BENCH=OFF \
  -DDEQ_WERROR="${DEQ_WERROR:-OFF}" -DDEQ_WITH_CUDA="${DEQ_WITH_CUDA:-OFF}"
cmake --build "$build" --parallel "$jobs"
ctest --test-dir "$build" --parallel "$jobs" --output-on-failure "$@"
