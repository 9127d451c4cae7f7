#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# cuda_requirements.sh NVCC CXX INCLUDE_DIRS (directories separated by ':', the toolkit's too)
# A source of the CUDA backend that is compiled as it must not be says so in one sentence.
set -euo pipefail
nvcc=$1 cxx=$2
IFS=: read -ra directories <<<"$3"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo '#include <deq/backend/cuda/runtime.cuh>' >"$folder/program.cu"

compile() {
  LC_ALL=C "$@" -std=c++20 "${directories[@]/#/-I}" "$folder/program.cu" -c -o "$folder/program.o" 2>&1
}
must_say() {
  local expected=$1 output
  shift
  if output=$(compile "$@"); then
    echo "compiles, and must not: $*"
    exit 1
  fi
  grep -qF -- "$expected" <<<"$output" || {
    printf '%s\n%s\n' "$* does not say: $expected" "$output" | head -n 60
    exit 1
  }
}

options=(--extended-lambda --expt-relaxed-constexpr)
compile "$nvcc" -arch=sm_80 "${options[@]}"
must_say "needs an architecture from sm_80 on" "$nvcc" -arch=sm_75 "${options[@]}"
for option in "${options[@]}"; do
  must_say "needs nvcc's --extended-lambda and --expt-relaxed-constexpr" "$nvcc" -arch=sm_80 "$option"
done
must_say "is compiled by nvcc" "$cxx" -x c++
