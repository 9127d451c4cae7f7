#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# check.sh COMPILER INCLUDE_DIRS FILE (directories separated by ':')
# FILE begins with `// expect: <text>`. It must compile with -DDEQ_FIXED, and without it must not
# compile, with <text> in what the compiler says.
set -euo pipefail
compiler=$1 file=$3
IFS=: read -ra directories <<<"$2"

compile() {
  LC_ALL=C "$compiler" -std=c++20 -fsyntax-only "${directories[@]/#/-I}" "$@" "$file" 2>&1
}
fail() {
  printf '%s: %s\n' "$file" "$1"
  printf '%s\n' "${output:-}" | head -n 60
  exit 1
}

expected=$(sed -n '1s|^// expect: *||p' "$file")
[[ -n $expected ]] || fail "the first line must be '// expect: <text>'"
output=$(compile -DDEQ_FIXED) || fail "does not compile with -DDEQ_FIXED"
if output=$(compile); then fail "compiles, and must not"; fi
grep -qF -- "$expected" <<<"$output" || fail "the compiler does not say: $expected"
