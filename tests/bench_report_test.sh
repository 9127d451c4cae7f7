#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Does bench/report.py report what was measured, and say what is wrong with what it cannot read?
# On made-up output of Google Benchmark.
set -euo pipefail
command -v python3 >/dev/null || { echo "no python3: skipped"; exit 77; }
export PYTHONDONTWRITEBYTECODE=1

report=$(dirname "${BASH_SOURCE[0]}")/../bench/report.py
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() {
  echo "bench_report_test.sh: $*"
  cat "$dir/out" "$dir/err"
  exit 1
}

# benchmark NAME TIME UNIT [COUNTERS]
benchmark() { echo "{\"name\": \"$1\", \"real_time\": $2, \"time_unit\": \"$3\"${4:+, $4}}"; }
# output PROGRAM BENCHMARK...: what that program would have written.
output() {
  local file=$dir/$1.json
  shift
  {
    echo '{"context": {"date": "2000-01-02", "num_cpus": 3, "threads": "2", "compiler": "cc 1",'
    echo '"triad of 192 MB, GB/s": "20.0",'
    echo '"caches": [{"type": "Unified", "level": 2, "size": 524288, "num_sharing": 1}]},'
    echo "\"benchmarks\": [$(IFS=, && echo "$*")]}"
  } >"$file"
}
in_table() { grep -qE "$1" "$dir/out" || fail "the table lacks: $1"; }

# --- A table, a file and figures ------------------------------------------------------------------
output conv_bench "$(benchmark block 50 ns '"GFLOP/s": 40')" \
  "$(benchmark 8_40_at_16_k3_s1/direct/samples:2/real_time 20 us '"GFLOP/s": 30')" \
  "$(benchmark 8_40_at_16_k3_s1/direct/samples:8/real_time 70 us '"GFLOP/s": 60, "iterations": 9')" \
  "$(benchmark 8_40_at_16_k3_s1/winograd2/samples:8/real_time 60 us '"GFLOP/s": 70')" \
  "$(benchmark 8_40_at_16_k3_s1/winograd4/samples:8/real_time 50 us '"GFLOP/s": 84')" \
  "$(benchmark 8_40_at_16_k3_s1/onednn/samples:8/real_time 60 us '"GFLOP/s": 70')" \
  "$(for gradient in vjp_input vjp_weight; do
    benchmark "8_40_at_16_k3_s1/$gradient/samples:8/real_time" 50 us '"GFLOP/s": 84' && echo ,
    benchmark "8_40_at_16_k3_s1/${gradient}_onednn/samples:8/real_time" 60 us '"GFLOP/s": 70' && echo ,
  done)$(benchmark 8_40_at_16_k1_s1/direct/samples:8/real_time 10 us '"GFLOP/s": 50')"
output solver_bench \
  "$(for batch in 1 4 16 64; do
    benchmark cheap/broyden_pairs/D:64/batch:$batch/memory:30/real_time $((25 * batch)) us \
      '"evaluations": 31, "allocations": 0' && echo ,
  done)$(benchmark cheap/broyden_pairs/D:64/batch:64/memory:30/real_time 1 us)"
output inverse_bench "$(benchmark \
  'product<deq::BroydenSteps<B>, true>/D:512/batch:1/memory:5/manual_time' 1.5 ms \
  '"bytes_per_second": 3e10, "of_stream": 1.5')"
python3 "$report" "$dir/results" "$dir"/{conv,solver,inverse}_bench.json \
  >"$dir/out" 2>"$dir/err" || fail "good measurements are refused"

in_table '^program +benchmark +time +GFLOP/s +of peak +GB/s +of stream +f +allocations$'
in_table '^conv_bench +block +50.0 ns +40.0$'
in_table '^conv_bench +8_40_at_16_k3_s1/direct/samples:8 +70.0 µs +60.0 +75%$'
in_table '^solver_bench +cheap/broyden_pairs/D:64/batch:4/memory:30 +100 µs +31 +0$'
in_table '^inverse_bench +product<BroydenSteps, true>/D:512/batch:1/memory:5 +1.50 ms +30.0 +1.50$'
in_table '3 cores, 2 threads; L2 unified 512 KiB; cc 1; revision .+; 2000-01-02$'
[[ $(grep -c batch:64/ "$dir/out") == 1 ]] || fail "a benchmark of two series is printed twice"

python3 - "$dir/results" <<'CHECK' >>"$dir/out" 2>&1 || fail "what was written is wrong"
import json, pathlib, sys
from xml.etree import ElementTree
folder = pathlib.Path(sys.argv[1])
results = json.loads((folder / "results.json").read_text())
assert results["date"] == "2000-01-02" and results["compiler"] == "cc 1"
assert results["cores"] == 3 and results["threads"] == 2
assert all(results[k] for k in ("cpu", "revision", "caches")), results
assert results["benchmarks"][2]["counters"] == {"GFLOP/s": 60, "share_of_peak": 0.75}
assert len(results["benchmarks"]) == 11 + 4 + 1
wanted = {"solver": ["lower is better", "D = 64", "1 ms", "broyden, pairs", "in proportion"],
          "convolutions": ["higher is better", "GFLOP/s", "8→40", "16², 3×3", "direct", "peak",
                           "vjp weight onednn"],
          "inverse": ["higher is better", "STREAM", "D 512", "Hᵀ x, BroydenSteps"]}
for name, texts in wanted.items():
    root = ElementTree.parse(folder / f"{name}.svg").getroot()
    drawn = " ".join(root.itertext())
    assert all(text in drawn for text in texts), (name, drawn)
    # A line is inside the picture.
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= float(root.get("width")) and 0 <= y <= float(root.get("height")), point
CHECK

# Figures of an earlier run do not stay beside other results.
python3 "$report" "$dir/results" "$dir/conv_bench.json" >"$dir/out" 2>"$dir/err"
[[ ! -e $dir/results/solver.svg && -s $dir/results/convolutions.svg ]] || fail "an old figure stays"

# --- Whatever cannot be read: one line that says so -----------------------------------------------
# fails TEXT ARGUMENT...
fails() {
  local text=$1 code=0
  shift
  python3 "$report" "$@" >"$dir/out" 2>"$dir/err" || code=$?
  [[ $code != 0 ]] || fail "passes, where it should say: $text"
  grep -qF "$text" "$dir/err" || fail "does not say: $text"
  [[ $(wc -l <"$dir/err") == 1 ]] || fail "says more than: $text"
}
bad() { fails "$1" "$dir/bad" "$dir/bad.json"; }
fails usage
fails "nowhere.json: No such file" "$dir/bad" "$dir/nowhere.json"
head -c 300 "$dir/solver_bench.json" >"$dir/bad.json" && bad "bad.json: not JSON"
echo '[]' >"$dir/bad.json" && bad "not the output of Google Benchmark"
echo '{"context": {}}' >"$dir/bad.json" && bad "no benchmarks"
output bad && bad "no results"
output bad '{"name": "x"}' && bad "x has no time"
output bad "$(benchmark x NaN us)" && bad "x has no time"
output bad "$(benchmark x 1 days)" && bad "x has no time"
output bad '{"real_time": 1, "time_unit": "s"}' && bad "a benchmark without a name"
[[ ! -e $dir/bad ]] || fail "results of nothing are written"
output bad '{"name": "x", "error_occurred": true, "error_message": "too cold"}'
bad "x failed: too cold"
grep -qE '^bad +x +failed$' "$dir/out" || fail "the table leaves out what failed"
echo "bench/report.py reports what it can read, and names what it cannot"
