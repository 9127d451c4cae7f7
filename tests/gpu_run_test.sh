#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Does bench/gpu/run.sh say of a run what is true of it? With made-up compilers, devices and programs
# in a folder of its own; no GPU.
set -euo pipefail
command -v python3 >/dev/null || { echo "no python3: skipped"; exit 77; }
export PYTHONDONTWRITEBYTECODE=1

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() {
  echo "gpu_run_test.sh: $*"
  cat "$dir/out"
  exit 1
}

mkdir -p "$dir/bin" "$dir/headers"/{Eigen,doctest} "$dir/tree"/{bench/gpu,include,tests}
cp "$source/bench/gpu"/{run.sh,table.py} "$dir/tree/bench/gpu"
touch "$dir/headers/Eigen/Core" "$dir/headers/doctest/doctest.h"
# The PyTorch of this machine, if it has one, has no part in this.
echo 'print("peer: nothing to compare with")' >"$dir/tree/bench/gpu/peer.py"
export EIGEN_DIR=$dir/headers DOCTEST_DIR=$dir/headers
export BROKEN='' DEVICE_NAME='Made-Up GPU' REVISION=abc

# program NAME: an executable from the standard input.
program() { cat >"$dir/bin/$1" && chmod +x "$dir/bin/$1"; }
program nvidia-smi <<'STUB'
#!/usr/bin/env bash
if [[ $1 == -L ]]; then echo "GPU 0: $DEVICE_NAME"; else echo 9.0; fi
STUB
program git <<'STUB'
#!/usr/bin/env bash
echo "$REVISION"
STUB
program compute-sanitizer <<'STUB'
#!/usr/bin/env bash
shift 4
exec "$@"
STUB
# Compilers make the same program of everything; what is named $BROKEN they do not link.
program nvcc <<'STUB'
#!/usr/bin/env bash
made='' linked=true
while [[ $# -gt 0 ]]; do
  case $1 in
    -o) made=$2 ;;
    -c) linked=false ;;
  esac
  shift
done
if $linked && [[ ${made##*/} == "$BROKEN" ]]; then echo 'error: made up' && exit 1; fi
cp "$(dirname "$0")/everything" "$made"
STUB
cp "$dir/bin/nvcc" "$dir/bin/g++"
# Programs do their work, but for $LIAR, which passes without, $SICK, which is killed in a result that
# is begun, and $DEVICE_NAME, without which there are no results.
program everything <<'STUB'
#!/usr/bin/env bash
name=${0##*/} json='' part=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --json) json=$2 ;;
    --part) part=$2 ;;
    --export) mkdir -p "$2" && exit ;;
  esac
  shift
done
case $name in
  "${LIAR:-}") ;;
  check_reference) echo '603 passed, 0 failed' ;;
  gpu_bench_*)
    if [[ $name/$part == "${SICK:-}" ]]; then printf '{"device": {' >"$json" && kill -9 $$; fi
    if [[ -z $DEVICE_NAME ]]; then exit 77; fi
    echo "{\"device\": {\"name\": \"$DEVICE_NAME\"}, \"batch\": 128," \
      "\"results\": {\"$name/large/$part\": {\"seconds\": 0.01}}}" >"$json"
    ;;
  *) echo '[doctest] test cases:   3 |   3 passed | 0 failed | 7 skipped' ;;
esac
STUB

# run CODE OPTION...: run.sh, which must exit with CODE.
run() {
  local code=0 wanted=$1
  shift
  rm -rf "$dir/results"
  PATH=$dir/bin:$PATH bash "$dir/tree/bench/gpu/run.sh" --jobs 2 --out "$dir/results" "$@" >"$dir/out" 2>&1 || code=$?
  [[ $code == "$wanted" ]] || fail "exits with $code in place of $wanted: $*"
}
says() { grep -qE -- "$1" "$dir/out" || fail "does not say: $1"; }
silent() { ! grep -qE -- "$1" "$dir/out" || fail "says: $1"; }
result=$(date +%F)-made-up-gpu

run 0
says '^passed +check_reference '
says '^passed +measure two epochs Bf16 '
says '^passed +racecheck cuda_graph_test '
silent 'measure two epochs Strict'
says '^Revision abc for sm_90a, batch 128'
[[ -s $dir/results/$result-abc.json && -s $dir/results/$result-abc.md ]] || fail "no result"

# What was built before is reported as that, whatever the sources are now.
REVISION=def run 0 --no-build --all-epochs
says '^Revision abc for sm_90a'
says '^passed +measure two epochs Strict '

# What was not built does not pass, though an earlier build has left it.
BROKEN=cuda_conv_test run 1
says '^failed +build cuda_conv_test .*error: made up'
says '^failed +cuda_conv_test .*was not built'
silent '^passed +memcheck cuda_conv_test'
[[ -s $dir/results/$result-abc.json ]] || fail "a failed build has no result"
BROKEN=gpu_bench_Strict run 1
says '^failed +export for PyTorch '

# A test that does nothing has not passed, nor has one for which no time was left.
LIAR=cuda_graph_test run 1
says '^failed +cuda_graph_test .*exits with 0, but does not say'
LIAR=check_reference run 1
says 'only 6 passed'
run 1 --budget 5
says '^skipped +cuda_conv_test .*no time'
[[ ! -e $dir/results ]] || fail "a run that did nothing has a result"

# Half a file is not a result, and costs no other one.
SICK=gpu_bench_Strict/passes run 1
says '^failed +measure passes .*killed'
says 'read passes.json \| failed'
grep -q 'gpu_bench_Bf16/large/model' "$dir/results/$result-abc.json" || fail "a killed program took all with it"

# Without a device there is no result.
DEVICE_NAME='' run 1
[[ ! -e $dir/results ]] || fail "no device, but a result"
rm "$dir/bin/nvidia-smi"
if ! command -v nvidia-smi >/dev/null && [[ ! -e /dev/nvidia0 ]]; then run 77 && says 'neither tested nor measured'; fi
echo "bench/gpu/run.sh passes nothing off"
