#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# check.sh COMPILER INCLUDE_DIRS BUILD_DIR [FILE] (directories separated by ':')
# Without FILE the headers are compiled into BUILD_DIR, once for all files.
# FILE begins with `// expect: <text>`. It must compile with -DDEQ_FIXED, and without it must not
# compile, with <text> in what the compiler says.
set -euo pipefail
compiler=$1 headers=$3/headers.hpp file=${4:-}
IFS=: read -ra directories <<<"$2"

compile() {
  LC_ALL=C "$compiler" -std=c++20 "${directories[@]/#/-I}" "$@" 2>&1
}
if [[ -z $file ]]; then
  mkdir -p "$3"
  echo '#include <deq/deq.hpp>' >"$headers"
  compile -x c++-header "$headers" -o "$headers.gch"
  exit
fi

check() {
  compile -fsyntax-only -include "$headers" "$@" "$file"
}
fail() {
  printf '%s: %s\n' "$file" "$1"
  printf '%s\n' "${output:-}" | head -n 60
  exit 1
}

expected=$(sed -n '1s|^// expect: *||p' "$file")
[[ -n $expected ]] || fail "the first line must be '// expect: <text>'"
output=$(check -DDEQ_FIXED) || fail "does not compile with -DDEQ_FIXED"
if output=$(check); then fail "compiles, and must not"; fi
grep -qF -- "$expected" <<<"$output" || fail "the compiler does not say: $expected"
