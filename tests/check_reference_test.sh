#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# check_reference must fail where it should: check_reference_test.sh PROGRAM DATA
set -euo pipefail
program=$1 data=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

fail() { echo "check_reference_test.sh: $*"; exit 1; }
run() { "$program" "$@" >"$dir/log" 2>&1; }

# The smallest set: one training batch's running statistics.
mkdir "$dir/set"
statistics="$dir/set/tiny.nodrop_bntrain.bn_after.safetensors"
cp "$data"/tiny.{weights,inputs,nodrop_bntrain.bn_after}.safetensors "$dir/set"
run "$dir/set" || fail "the stored numbers do not pass"
grep -q ' 0 failed' "$dir/log" || fail "no summary"

# One wrong bit, the last number's sign.
size=$(stat -c %s "$statistics")
printf '\377' | dd of="$statistics" bs=1 seek=$((size - 1)) conv=notrunc status=none
run "$dir/set" && fail "a wrong number passes"
grep -q '^FAIL' "$dir/log" || fail "a wrong number is not named"
grep -q ' 1 failed' "$dir/log" || fail "a wrong number is not counted"

truncate -s $((size - 8)) "$statistics"
run "$dir/set" && fail "a truncated file passes"
grep -q 'bn_after' "$dir/log" || fail "the truncated file is not named"

mkdir "$dir/empty"
run "$dir/empty" && fail "nothing to compare passes"
run "$dir/missing" && fail "a missing directory passes"
grep -q 'missing is no directory' "$dir/log" || fail "the missing directory is not named"
run && fail "no argument passes"
grep -q 'usage' "$dir/log" || fail "no usage"
echo "check_reference fails where it should"
