#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures deq against PyTorch on this CPU, from any directory:
#     bash bench/compare.sh [--quick | --rounds N] [--seconds S] [--patience S] [CASE...]
# Prints `ratio CASE MEDIAN MIN MAX`, the peer's time over ours, so that more than 1 is faster than
# PyTorch; and before that, who the peer is. Both sides take turns. The cases: bench/compare.sh --list
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} != --list ]]; then
  source tests/ensure_packages.sh
  ensure_packages build-essential cmake ninja-build libeigen3-dev python3-torch libopenblas0-openmp
  build=build/bench
  generator=()
  if [[ ! -f $build/CMakeCache.txt ]] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S . -B "$build" ${generator[@]+"${generator[@]}"} -DCMAKE_BUILD_TYPE=Release -DDEQ_NATIVE=ON \
    -DDEQ_BUILD_TESTS=OFF -DDEQ_BUILD_EXAMPLES=OFF -DDEQ_BUILD_BENCH=ON >/dev/null
  cmake --build "$build" --target compare_cases --parallel "$(nproc)" >&2
fi

# Debian's torch calls whichever BLAS the alternatives name; the reference one would be no peer.
for blas in /usr/lib/*/openblas-openmp; do
  if [[ -e $blas/libblas.so.3 ]]; then
    export LD_LIBRARY_PATH=$blas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
done
exec "${DEQ_PEER_PYTHON:-/usr/bin/python3}" bench/peers/compare.py "$@"
