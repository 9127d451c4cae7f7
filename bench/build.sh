# SPDX-License-Identifier: MIT
# Sourced by compare.sh and run.sh, in the root: `build_bench "PACKAGE..." TARGET...` installs what
# is missing, and builds programs of bench/ for this CPU in build/bench.
build_bench() {
  local build=build/bench generator=() packages
  read -ra packages <<<"$1"
  shift
  source tests/ensure_packages.sh
  ensure_packages build-essential cmake ninja-build libeigen3-dev "${packages[@]}" || return
  if [[ ! -f $build/CMakeCache.txt ]] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S . -B "$build" ${generator[@]+"${generator[@]}"} -DCMAKE_BUILD_TYPE=Release \
    -DDEQ_NATIVE=ON -DDEQ_BUILD_TESTS=OFF -DDEQ_BUILD_EXAMPLES=OFF -DDEQ_BUILD_BENCH=ON \
    >/dev/null || return
  cmake --build "$build" --target "$@" --parallel "$(nproc)" >&2
}
