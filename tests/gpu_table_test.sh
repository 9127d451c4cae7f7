#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Does bench/gpu/table.py report what was measured, and say what is wrong with what it cannot read?
# On made-up output of gpu_bench and peer.py; no GPU.
set -euo pipefail
command -v python3 >/dev/null || { echo "no python3: skipped"; exit 77; }
export PYTHONDONTWRITEBYTECODE=1

table=$(dirname "${BASH_SOURCE[0]}")/../bench/gpu/table.py
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() {
  echo "gpu_table_test.sh: $*"
  cat "$dir/out" "$dir/err"
  exit 1
}

# result NAME SECONDS [FIELDS]
result() { echo "\"$1\": {\"seconds\": $2${3:+, $3}}"; }
# bench FILE DEVICE RESULT...: what gpu_bench would have written.
bench() {
  local file=$dir/$1.json device=$2
  shift 2
  echo "{\"device\": {\"name\": \"$device\", \"peaks\": \"published\", \"bandwidth\": 2e12}, \"batch\": 128," \
    "\"results\": {$(IFS=, && echo "$*")}}" >"$file"
}
# peer FILE RESULT...: what peer.py would have written.
peer() {
  local file=$dir/$1.json
  shift
  echo "{\"about\": {\"torch\": \"9.9\", \"cudnn\": 9}, \"results\": {$(IFS=, && echo "$*")}}" >"$file"
}
run() {
  rm -rf "$dir/results"
  python3 "$table" --out "$dir/results" --date 2000-01-02 --revision abc --arch sm_1 "$@" >"$dir/out" 2>"$dir/err"
}
in_table() { grep -qF -- "$1" "$dir/out" || fail "the table lacks: $1"; }

# --- A table and a file ----------------------------------------------------------------------------
conv=bf16/large/conv
bench model 'Made-Up GPU 80GB' \
  "$(result bf16/large/step 0.010 '"images_per_second": 12800, "peak_bytes": 1e9, "minutes_of_220_epochs": 20, "loss": 2.3, "z": 50, "step_bytes": 2')" \
  "$(result bf16/large/step_eager 0.012 '"loss": 2.3, "z": 50, "peak_bytes": 1e9')" \
  "$(result bf16/large/solve 0.008 '"broyden_share": 0.1, "evaluations": 19')" \
  "$(result bf16/large/f 0.002 '"out": 7')" \
  "$(result bf16/large/inference_1 0.005 '"logits": 0.7')" \
  "$(result strict/large/step 0.1 '"loss": 2.3, "z": 50, "peak_bytes": 1e9, "step_bytes": 4')" \
  '"tf32/large/f": {"error": "too | hot"}'
bench convolutions 'Made-Up GPU 80GB' \
  "$(result $conv/32_160_at_32_k3_s1/forward 1e-4 '"flop": 1e10, "flop_per_second": 1e14, "floor": 5e-5, "share": 0.5')" \
  "$(result $conv/64_320_at_16_k3_s1/forward 1e-4 '"flop": 1e10, "floor": null, "share": null')" \
  "$(result passes/copy 2e-5 '"bytes_per_second": 1.5e12, "floor": 1.5e-5, "share": 0.75')"
peer peer "$(result bf16/large/step_eager 0.060 '"loss": 2.303, "z": 50.01, "peak_bytes": 2e9')" \
  "$(result bf16/large/step_graph 0.030 '"loss": 2.301, "z": 50.02, "peak_bytes": 3e9')" \
  "$(result strict/large/step_eager 0.2 '"loss": 2.3, "z": 50, "peak_bytes": 4e9')" \
  "$(result bf16/large/f 0.008 '"out": 7.00001')" "$(result bf16/large/f_compiled 0.006 '"out": 7.00001')" \
  "$(result $conv/32_160_at_32_k3_s1/forward 2e-4)" \
  "$(result $conv/32_160_at_32_k3_s1/forward_with_statistics 3e-4)" \
  "$(result $conv/64_320_at_16_k3_s1/forward 9e-5)" \
  '"bf16/large/step_compiled": {"error": "RuntimeError: no compiler"}' '"tf32/large/f": {"skipped": "no time"}'
printf '%s\t%s\t%s\t%s\n' build passed 60 '' racecheck skipped 0 'no time' >"$dir/stages.tsv"
all=(--stages "$dir/stages.tsv" --peer "$dir/peer.json" "$dir/model.json" "$dir/convolutions.json")
run "${all[@]}" || fail "good measurements are refused"

in_table '# Made-Up GPU 80GB, 2000-01-02'
in_table 'Revision abc for sm_1, batch 128; peaks published, bandwidth 2000 GB/s, a copy -; PyTorch 9.9, cuDNN 9.'
in_table '| racecheck | skipped | 0 | no time |'
in_table '| bf16: GDEQ step of LARGE, over PyTorch eager | 6.00x | 4x | 10x | reached |'
in_table "| bf16: GDEQ step of LARGE, over PyTorch's best (step_graph) | 3.00x | 2x | 4x | reached |"
in_table '| bf16: 3x3 convolutions of LARGE, forward, over cuDNN; the worst, 64_320_at_16_k3_s1 | 0.90x | 1x | 1.5x | missed |'
in_table '| bf16: 3x3 convolutions of LARGE, input gradient, over cuDNN; the worst, - | - | 1x | 1.5x | not measured |'
in_table "| bf16: Broyden's share of the step of LARGE | 8.0% | < 15.0% | < 5.0% | reached |"
in_table '| bf16: 220 epochs of LARGE, minutes, projected from the step alone | 20 | < 90 | < 30 | aim reached |'
in_table '| bf16: 3x3 convolutions of LARGE, forward with PyTorch taking the same moments, over cuDNN; the worst, 32_160_at_32_k3_s1 | 3.00x | 1x | 1.5x | aim reached |'
in_table '| forward | 0.90 to 2.00 | - | - | - | - | - |'
# An eager step's peak has cuDNN's choosing in it, unless it says that it has not.
in_table "| bf16: peak memory of a step of LARGE, PyTorch's least (step_graph) over ours | 3.00x | 2x | 4x | reached |"
in_table "| strict: peak memory of a step of LARGE, PyTorch's least (step_eager) over ours | 4.00x | 2x | 4x | aim reached |"
in_table 'keeps steps, as bfloat16 in bf16 and else in float'
in_table '| tf32: GDEQ step of LARGE, over PyTorch eager | - | 4x | 10x | not measured |'
in_table '| bf16/large/step_eager | loss | 2.3 | 2.303 | 1.3e-03 | 0.002 | same |'
in_table '| bf16/large/step_graph | z | 50 | 50.02 | 4.0e-04 | 0.002 | same |'
in_table '| bf16/large/f_compiled | out | 7 | 7.00001 | 1.4e-06 | 1e-05 | same |'
in_table '| bf16/large/f | 2 ms | - | - | - | - | - | 6 ms (f_compiled) | 3.00x | - |'
in_table '| bf16/large/step | 10 ms | - | - | - | - | 1.28e+04 | 30 ms (step_graph) | 3.00x | - |'
in_table "| $conv/32_160_at_32_k3_s1/forward | 100 µs | 50 µs | 50% | 100 | - | - | 200 µs | 2.00x | 3.00x |"
in_table "| $conv/64_320_at_16_k3_s1/forward | 100 µs | - | - |"
in_table '| passes/copy | 20 µs | 15 µs | 75% | - | 1500 | - | - | - | - |'
in_table '| tf32/large/f | failed: too \| hot |'
in_table '| bf16/large/step_compiled | RuntimeError: no compiler |'
in_table '| tf32/large/f | skipped: no time |'
file=$dir/results/2000-01-02-made-up-gpu-80gb-abc
grep -qF '6.00x' "$file.md" || fail "the table is not written"
python3 - "$file.json" <<'CHECK' >>"$dir/out" 2>&1 || fail "what was written is wrong"
import json, sys
r = json.load(open(sys.argv[1], encoding="utf-8"))
assert r["date"] == "2000-01-02" and r["revision"] == "abc" and r["arch"] == "sm_1" and r["batch"] == 128
assert r["device"]["name"] == "Made-Up GPU 80GB"
assert [s["outcome"] for s in r["stages"]] == ["passed", "skipped"]
assert len(r["ours"]) == 10 and r["ours"]["passes/copy"]["share"] == 0.75
assert r["peer"]["about"]["torch"] == "9.9"
CHECK

# The table of a report once more, and a second run at the same revision beside the first.
cp "$file.md" "$dir/first.md" && echo >"$file.md"
python3 "$table" --again "$file.json" && cmp "$dir/first.md" "$file.md" || fail "--again writes another table"
python3 "$table" --out "$dir/results" --date 2000-01-02 --revision abc "${all[@]}" >"$dir/out" 2>"$dir/err" &&
  cmp "$dir/first.md" "$file.md" && [[ -s $file-2.json && -s $file-2.md ]] || fail "a result is written over"

# What was measured for two epochs counts more than a projection from one step.
bench epochs 'Made-Up GPU 80GB' "$(result bf16/large/epochs 60 '"epochs": 2, "minutes_of_220_epochs": 110')"
run "${all[@]}" "$dir/epochs.json" || fail "epochs are refused"
in_table '| bf16: 220 epochs of LARGE, minutes, projected from 2 measured epochs | 110 | < 90 | < 30 | missed |'

# refuses TEXT ARGUMENT...: exits with 1 and says why.
refuses() {
  local text=$1 code=0
  shift
  run "$@" || code=$?
  [[ $code == 1 ]] || fail "exits with $code, where it should say: $text"
  grep -qF -- "$text" "$dir/err" || fail "does not say: $text"
}
# A stage that failed fails the whole, and is in the table. Of no device there is no result.
printf '%s\t%s\t%s\t%s\n' cuda_conv_test failed 3 'exit status 1' >"$dir/failed.tsv"
refuses 'cuda_conv_test failed' --stages "$dir/failed.tsv" "$dir/model.json"
in_table '| cuda_conv_test | failed | 3 | exit status 1 |'
[[ -s $file.json ]] || fail "what was measured beside a failed stage is lost"
refuses 'no device, nothing is written' --stages "$dir/failed.tsv"
in_table '| cuda_conv_test | failed | 3 | exit status 1 |'
[[ ! -e $dir/results ]] || fail "a run without a device leaves a result"
refuses 'nothing was measured' --stages "$dir/stages.tsv"

# Both sides must have done the same, and say so.
different() {
  peer bad "$(result "$1" 0.2 "$2")"
  refuses "$1: $3 is not ours" --peer "$dir/bad.json" "$dir/model.json"
  in_table DIFFERENT
}
different bf16/large/step_eager '"loss": 2.31, "z": 50' loss
different bf16/large/step_compiled '"loss": 2.3, "z": 50.2' z
different bf16/large/step_graph '"loss": null, "z": 50' loss
different bf16/large/step_graph '"loss": 2.3' z
different bf16/large/f '"out": 7.001' out
different bf16/large/inference_1_throughout '"logits": 0.72' logits

# --- Whatever cannot be read -----------------------------------------------------------------------
# It is left out, as a failed stage, and the rest is reported.
bad() {
  refuses "$1" "$dir/model.json" "$dir/bad.json"
  in_table '| read bad.json | failed | 0 |'
  [[ -s $file.json ]] || fail "one bad file, and the good one is lost"
}
refuses "nowhere.json: No such file" "$dir/nowhere.json"
head -c 100 "$dir/model.json" >"$dir/bad.json" && bad "bad.json: not JSON"
echo '[]' >"$dir/bad.json" && bad "needs device and results"
echo '{"device": {}, "results": {"x": 1}}' >"$dir/bad.json" && bad "a result is no object"
refuses "needs about and results" --peer "$dir/model.json" "$dir/model.json"
bench bad 'Another GPU' && bad "bad.json: of another device than"
bench bad 'Made-Up GPU 80GB' && sed -i 's/: 128/: 64/' "$dir/bad.json" && bad "bad.json: of another batch than"
# Without the stages nothing is known: one line that says so.
fails() {
  local text=$1 code=0
  shift
  run "$@" || code=$?
  [[ $code == 2 ]] || fail "passes, where it should say: $text"
  grep -qF -- "$text" "$dir/err" || fail "does not say: $text"
  [[ $(wc -l <"$dir/err") == 1 ]] || fail "says more than: $text"
  [[ ! -e $dir/results ]] || fail "results of nothing are written"
}
fails "nowhere.tsv: No such file" --stages "$dir/nowhere.tsv" "$dir/model.json"
echo 'build passed' >"$dir/bad.tsv" && fails "not a stage" --stages "$dir/bad.tsv" "$dir/model.json"
printf 'build\tmaybe\t1\t\n' >"$dir/bad.tsv" && fails "'maybe' is no outcome" --stages "$dir/bad.tsv" "$dir/model.json"
echo "bench/gpu/table.py reports what it can read, and names what it cannot"
