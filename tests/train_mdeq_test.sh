#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Does train_mdeq keep its promises? Runs the program on generated images:
#     bash tests/train_mdeq_test.sh PATH_OF_TRAIN_MDEQ
set -euo pipefail

program=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

check() {  # check WHAT COMMAND...: the command must succeed
  local what=$1
  shift
  if "$@"; then echo "ok    $what"; else
    echo "FAIL  $what"
    failures=$((failures + 1))
  fi
}

# 3 steps an epoch, 12 in all, of which the first 2 unrolled; everything random is switched on.
training=("$program" --model demo --synthetic --train-samples 40 --test-samples 16 --batch 16
  --epochs 4 --pretrain-steps 2 --pretrain-layers 3 --dropout 0.2 --augment on
  --forward-iterations 4 --backward-iterations 4 --checkpoint-every 4)
train() { "${training[@]}" "$@" 2>>"$work/stderr"; }

# fails CODE TEXT ARGUMENTS...: the program must end with that exit code and say TEXT on the error
# stream, whose other line, for a wrong command line, points to --help.
fails() {
  local code=$1 text=$2 got=0
  shift 2
  "$program" --model demo --threads 1 --out "$work/fails" "$@" >"$work/out" 2>"$work/err" || got=$?
  check "exit code $code, '$text': $*" \
    test "$got" = "$code" -a "$(wc -l <"$work/err")" = "$code" -a -n "$(grep -F -e "$text" "$work/err")"
}

without_seconds() { sed 's/,[^,]*$//' "$1"; }
same_training() {
  cmp "$work/$1/checkpoint.safetensors" "$work/$2/checkpoint.safetensors" &&
    cmp "$work/$1/epochs.csv" "$work/$2/epochs.csv" &&
    cmp <(without_seconds "$work/$1/steps.csv") <(without_seconds "$work/$2/steps.csv")
}

# --- A training is a function of its options ------------------------------------------------------
train --gradient gdeq --threads 2 --out "$work/straight" >"$work/log"
check "the log names the data" grep -q "GENERATED IMAGES (not CIFAR-10)" "$work/log"
check "12 steps are logged" test "$(wc -l <"$work/straight/steps.csv")" = 13

train --gradient gdeq --threads 1 --out "$work/one_thread" >/dev/null
check "one thread or two: the same bits" same_training straight one_thread

for stop in 1 5 9; do
  resume=$([[ $stop == 1 ]] || echo --resume)
  train --gradient gdeq --out "$work/parts" --stop-at "$stop" $resume >/dev/null
done
train --gradient gdeq --out "$work/parts" --resume >/dev/null
check "stopped three times and resumed: the same bits" same_training straight parts

# What was logged after the last checkpoint is taken back.
train --gradient gdeq --out "$work/killed" --stop-at 5 >/dev/null
echo "6,2,0,torn" >>"$work/killed/steps.csv"
printf '7,2' >>"$work/killed/steps.csv"
train --gradient gdeq --out "$work/killed" --resume >/dev/null
check "killed after a checkpoint and resumed: the same bits" same_training straight killed

# --- Ctrl-C ---------------------------------------------------------------------------------------
endless=(--gradient jfb --epochs 100000)
"${training[@]}" "${endless[@]}" --out "$work/interrupted" >"$work/log" 2>>"$work/stderr" &
pid=$!
until grep -q ^4, "$work/interrupted/steps.csv" 2>/dev/null; do sleep 0.1; done
kill -INT "$pid"
code=0
wait "$pid" || code=$?
check "Ctrl-C ends with 128 + 2" test "$code" = 130
check "and says how to go on" grep -q -- "--resume" "$work/log"
steps=$(($(tail -n 1 "$work/interrupted/steps.csv" | cut -d, -f1) + 2))
train "${endless[@]}" --out "$work/interrupted" --resume --stop-at "$steps" >/dev/null
train "${endless[@]}" --out "$work/uninterrupted" --stop-at "$steps" >/dev/null
check "and loses nothing" same_training interrupted uninterrupted

# --- Every method with every solver ---------------------------------------------------------------
for method in "implicit broyden" "implicit anderson" "implicit fixed-point" "jfb anderson" \
  "npg fixed-point" "gdeq anderson" "gdeq-refined broyden" "unrolled broyden"; do
  read -r gradient solver <<<"$method"
  train --gradient "$gradient" --solver "$solver" --stop-at 3 --out "$work/${method/ /_}" >"$work/log" ||
    true
  check "$gradient after $solver" grep -q "^stopped at step 3 of 12" "$work/log"
done

# --- Comparison and benchmark ---------------------------------------------------------------------
train --compare implicit,jfb,npg,gdeq --out "$work/compare" >"$work/log"
check "--compare prints a table of four methods" \
  test "$(grep -cE '^(implicit|jfb|npg|gdeq) +[0-9.]+' "$work/log")" = 4
for file in table.md accuracies.csv cosines.csv {accuracy,cosine}_{pretrained,scratch}.svg; do
  check "--compare writes $file" test -s "$work/compare/$file"
done
check "generated data is labelled in the table" grep -q "not CIFAR-10" "$work/compare/table.md"
for figure in "$work"/compare/*.svg; do
  check "and in ${figure##*/}" grep -q "not CIFAR-10" "$figure"
done
check "pre-training is the same for all methods" \
  test "$(grep -c '^[0-9]*,pretrained,' "$work/compare/accuracies.csv")" = 16
"$program" --benchmark --model demo --batch 4 --rounds 1 --forward-iterations 2 >"$work/log" 2>&1
check "--benchmark prints a table" grep -qE '^gdeq +[0-9.]+ +[0-9.]+' "$work/log"

# --- Errors ---------------------------------------------------------------------------------------
check "--help fits into 80 columns" test -z "$("$program" --help | grep -E '.{81}')"
fails 2 "did you mean --epochs?" --epoch 3
fails 2 "--epochs: expected an integer >= 1, got '0'" --epochs 0
fails 2 "--gradient: expected one of implicit" --gradient magic
fails 2 "leaves none behind" --gradient gdeq --solver fixed-point
fails 2 "needs implicit" --compare jfb,gdeq
fails 2 "takes neither --resume" --compare implicit,jfb --resume

data=$work/data
fails 1 "bash examples/get_cifar10.sh $data" --data "$data"
mkdir "$data"
head -c 1000 /dev/zero >"$data/data_batch_1.bin"
fails 1 "data_batch_1.bin: 1000 bytes, expected 30730000; is the file truncated?" --data "$data"
head -c 30733073 /dev/zero >"$data/data_batch_1.bin"
fails 1 "data_batch_1.bin: 30733073 bytes, expected 30730000" --data "$data"
head -c 30730000 /dev/zero | tr '\0' '\377' >"$data/data_batch_1.bin"
fails 1 "data_batch_1.bin: record 0 has label 255, expected 0...9" --data "$data"

: >"$work/file"
small=(--synthetic --train-samples 40 --test-samples 16)
fails 1 "cannot make the directory $work/file/out" "${small[@]}" --out "$work/file/out"
fails 1 "cannot make the directory $work/file/out" "${small[@]}" --out "$work/file/out" \
  --compare implicit

checkpoint=$work/fails/checkpoint.safetensors
good=$work/straight/checkpoint.safetensors
resumed=("${small[@]}" --batch 16 --resume)
mkdir -p "$work/fails"
fails 1 "cannot read $checkpoint" "${resumed[@]}"
head -c 3000 "$good" >"$checkpoint"
fails 1 "$checkpoint" "${resumed[@]}"
head -c 3000 /dev/zero >"$checkpoint"
fails 1 "$checkpoint" "${resumed[@]}"
cp "$good" "$checkpoint"
fails 1 "was made with --gradient gdeq, not with --gradient implicit" "${resumed[@]}"
fails 1 "exists: go on with --resume, or choose another --out" "${small[@]}"
check "and is still there" cmp "$good" "$checkpoint"
# The same bytes under another type and shape.
same_options=("${training[@]:3}" --gradient gdeq --resume)
LC_ALL=C sed 's/"steps":{"dtype":"I64","shape":\[\]/"steps":{"dtype":"U8","shape":[8]/' "$good" >"$checkpoint"
fails 1 'tensor "steps" has shape (8), it should be one number' "${same_options[@]}"
LC_ALL=C sed 's/"epoch":{"dtype":"F64","shape":\[5\]/"epoch":{"dtype":"U8","shape":[40]/' "$good" >"$checkpoint"
fails 1 'tensor "epoch" has shape (40), not (5)' "${same_options[@]}"

if [[ $failures -gt 0 ]]; then
  cat "$work/stderr"
  echo "$failures failed"
  exit 1
fi
