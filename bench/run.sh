#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs every microbenchmark on this CPU, from any directory:
#     bash bench/run.sh [--quick] [--filter REGEX] [--out DIR]
# Prints one table, and writes results.json and figures to DIR (build/bench/results). All of it
# takes some ten minutes on two cores. With --quick each benchmark runs just long enough to see that
# it does, with --filter only those whose names match.
set -euo pipefail

here=$(pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
programs=(conv_bench inverse_bench solver_bench mdeq_bench)
out=build/bench/results
options=()

usage() {
  echo "usage: bench/run.sh [--quick] [--filter REGEX] [--out DIR]" >&2
  exit 2
}
while [[ $# -gt 0 ]]; do
  case $1 in
    --quick) options+=(--benchmark_min_time=0.01) ;;
    --filter | --out)
      [[ -n ${2:-} ]] || usage
      if [[ $1 == --filter ]]; then options+=("--benchmark_filter=$2"); else out=$2; fi
      if [[ $1 == --out && $2 != /* ]]; then out=$here/$2; fi
      shift
      ;;
    *) usage ;;
  esac
  shift
done

source bench/build.sh
if ! build_bench "libbenchmark-dev libdnnl-dev ocl-icd-opencl-dev python3" "${programs[@]}"; then
  echo "The build failed; it needs Google Benchmark (libbenchmark-dev)." >&2
  exit 1
fi

raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
results=()
for program in "${programs[@]}"; do
  echo "Running $program" >&2
  if ! "build/bench/bench/$program" ${options[@]+"${options[@]}"} --benchmark_out_format=json \
    --benchmark_out="$raw/$program.json" >"$raw/log" 2>&1; then
    tail -n 20 "$raw/log" >&2
    echo "$program failed" >&2
    exit 1
  fi
  # Nothing that the filter takes leaves an empty file.
  if [[ -s $raw/$program.json ]]; then results+=("$raw/$program.json"); fi
done
if [[ ${#results[@]} -eq 0 ]]; then
  echo "No benchmark has a name that matches." >&2
  exit 1
fi
python3 bench/report.py "$out" "${results[@]}"
