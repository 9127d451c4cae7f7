#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The whole of deq in ten minutes on two cores: trains a small multiscale deep equilibrium model by
# four gradient methods side by side, with and without pre-training, and prints what each cost and
# what it reached. From any directory, without arguments; everything is written below build/demo,
# CIFAR-10 to data/cifar10.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tests/ensure_packages.sh
ensure_packages build-essential cmake libeigen3-dev curl ca-certificates

build=build/demo
results=$build/results
log=$build/build.log
mkdir -p "$build"

echo "Building (a minute or two; $log)"
# A build directory that came along with a copied or renamed tree is of no use.
cache=$build/CMakeCache.txt
if [[ -f $cache ]] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd -P)" "$cache"; then
  rm -rf "$build/CMakeFiles" "$cache"
fi
if ! { cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DDEQ_BUILD_TESTS=OFF \
  -DDEQ_BUILD_BENCH=OFF && cmake --build "$build" --target train_mdeq; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "The build failed; the whole log is $log" >&2
  exit 1
fi

data=(--data data/cifar10)
if ! bash examples/get_cifar10.sh data/cifar10; then
  echo "CIFAR-10 could not be fetched. The demo goes on with GENERATED images, which are much easier:"
  echo "what follows says nothing about CIFAR-10."
  data=(--synthetic)
fi

"$build/examples/train_mdeq" --model demo "${data[@]}" --train-samples 3000 --test-samples 1000 \
  --epochs 4 --compare implicit,jfb,npg,gdeq --out "$results"

echo "Pictures: $results/*.svg"
