#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures deq against PyTorch on this CPU, from any directory:
#     bash bench/compare.sh [--quick | --rounds N] [--seconds S] [--patience S] [CASE...]
# Prints `ratio CASE MEDIAN MIN MAX`, the peer's time over ours, so that more than 1 is faster than
# PyTorch; and before that, who the peer is. Both sides take turns. The cases: bench/compare.sh --list
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} != --list ]]; then
  source bench/build.sh
  build_bench "python3-torch libopenblas0-openmp" compare_cases
fi

# Debian's torch calls whichever BLAS the alternatives name; the reference one would be no peer.
for blas in /usr/lib/*/openblas-openmp; do
  if [[ -e $blas/libblas.so.3 ]]; then
    export LD_LIBRARY_PATH=$blas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
done
exec "${DEQ_PEER_PYTHON:-/usr/bin/python3}" bench/peers/compare.py "$@"
