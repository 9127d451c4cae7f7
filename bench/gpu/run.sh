#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds, tests and measures the CUDA backend on this machine's GPU, from any directory:
#     bash bench/gpu/run.sh [--build-only] [--no-build] [--arch ARCH] [--march MARCH] [--budget SECONDS]
#                           [--batch N] [--seconds S] [--jobs N] [--out DIR] [--all-epochs]
# Everything within the budget (540 s): a stage for which no time is left is skipped, and says so.
# Writes DATE-GPU-REVISION.json and .md to DIR (bench/gpu/results), and nothing over what is there.
# Needs nvcc 13, g++ 12, Eigen and doctest; not CMake. Headers are looked for in $EIGEN_DIR and
# $DOCTEST_DIR, then where the system has them. --no-build takes the programs that an earlier run,
# here or on another machine, has left in build/gpu, and reports the revision that they were built
# from. --all-epochs measures two epochs in tf32 and strict float as well, which takes 2 minutes.
# Exits with 1 if something failed, was killed, or if a test did not run; with 77 if there is no GPU
# (0 with --build-only).
set -euo pipefail

here=$(pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=build/gpu out=bench/gpu/results
budget=540 batch=128 seconds=0.1 jobs=$(nproc)
arch='' march='' build_only=false no_build=false all_epochs=false

usage() {
  echo "usage: bench/gpu/run.sh [--build-only | --no-build] [--arch ARCH] [--march MARCH]" \
    "[--budget SECONDS] [--batch N] [--seconds S] [--jobs N] [--out DIR] [--all-epochs]" >&2
  exit 2
}
while [[ $# -gt 0 ]]; do
  case $1 in
    --build-only) build_only=true ;;
    --no-build) no_build=true ;;
    --all-epochs) all_epochs=true ;;
    --arch | --march | --budget | --batch | --seconds | --jobs | --out)
      [[ -n ${2:-} ]] || usage
      declare "${1#--}=$2"
      if [[ $1 == --out && $2 != /* ]]; then out=$here/$2; fi
      shift
      ;;
    *) usage ;;
  esac
  shift
done
if $build_only && $no_build; then usage; fi

tests=(cuda_contract_test cuda_kernels_test cuda_conv_test cuda_equilibrium_test cuda_graph_test
  cuda_training_test)
precisions=(Bf16 Tf32 Strict)
mkdir -p "$build/logs"
stages=$build/stages.tsv
: >"$stages"
rm -f "$build"/*.json "$build"/*.json.new
failures=0
outcome=''  # of the last stage

# --- Stages ----------------------------------------------------------------------------------------

left() { echo $((budget - SECONDS)); }
# note STAGE OUTCOME SECONDS WHY
note() {
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$stages"
  printf '%-9s %-34s %4s s  %s\n' "$2" "$1" "$3" "$4" >&2
  outcome=$2
  if [[ $2 == failed ]]; then failures=$((failures + 1)); fi
}
log_of() { echo "$build/logs/${1//[^a-zA-Z0-9_]/_}.log"; }
# The line of a log that says most about a failure.
last_words() {
  { grep -iE 'error|fail|not supported|exception' "$1" || cat "$1"; } 2>/dev/null | tail -n 1 |
    tr '\t' ' ' | cut -c 1-200
}
# judge STAGE CODE SECONDS [PATTERN]: notes how a stage ended. If it passed, its log has the pattern.
judge() {
  local log
  log=$(log_of "$1")
  case $2 in
    0)
      if [[ -n ${4:-} ]] && ! grep -qE -- "$4" "$log"; then
        note "$1" failed "$3" "exits with 0, but does not say: $4"
      else
        note "$1" passed "$3" ''
      fi
      ;;
    77) note "$1" skipped "$3" "$(last_words "$log")" ;;
    124 | 137) note "$1" failed "$3" 'killed, or it did not end in time' ;;
    *) note "$1" failed "$3" "exit status $2: $(last_words "$log")" ;;
  esac
}
# What a test program says when it has done its work: a filter may match nothing, data may be missing.
proof_of() {
  if [[ $1 == check_reference ]]; then echo '^603 passed, 0 failed'; else echo '\[doctest\] test cases: *[1-9]'; fi
}
# stage NAME NEEDS LIMIT COMMAND...: runs it for at most LIMIT seconds, if NEEDS are left.
stage() {
  local name=$1 needs=$2 limit=$3 code=0 start=$SECONDS
  shift 3
  if (($(left) < needs)); then
    note "$name" skipped 0 'no time'
    return 0
  fi
  if ((limit > $(left))); then limit=$(left); fi
  timeout -k 5 "$limit" "$@" >"$(log_of "$name")" 2>&1 || code=$?
  judge "$name" "$code" $((SECONDS - start))
}

# --- The machine -----------------------------------------------------------------------------------

have_gpu() {
  { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; } || [[ -e /dev/nvidia0 ]]
}
gpu=false
if have_gpu; then gpu=true; fi

# first_with FILE DIR...: the first directory that has the file.
first_with() {
  local file=$1 dir
  shift
  for dir in "$@"; do
    if [[ -n $dir && -e $dir/$file ]]; then
      echo "$dir"
      return 0
    fi
  done
  return 1
}
# find_tool NAME: in PATH, or the newest under /usr/local/cuda*.
find_tool() {
  local found newest=''
  if command -v "$1"; then return; fi
  for found in /usr/local/cuda*/{bin,compute-sanitizer}/"$1"; do
    if [[ -x $found ]]; then newest=$found; fi
  done
  echo "$newest"
}
nvcc=$(find_tool nvcc)
sanitizer=$(find_tool compute-sanitizer)

# The device's compute capability, as 9.0; nvcc has to help where the driver's tool does not say.
capability() {
  local found=''
  if command -v nvidia-smi >/dev/null; then
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
  fi
  if [[ $found != [0-9]*.[0-9]* && -n $nvcc ]]; then
    echo '#include <cstdio>
      int main() {
        cudaDeviceProp p;
        if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return 1;
        std::printf("%d.%d", p.major, p.minor);
      }' >"$build/capability.cu"
    found=$("$nvcc" --run -o "$build/capability" "$build/capability.cu" 2>/dev/null) || found=''
  fi
  echo "$found"
}
# With the "a" of an architecture for 9.0 and later, without which there is no wgmma; without a GPU
# for an H100.
find_arch() {
  local found
  if ! $gpu; then
    echo sm_90a
    return
  fi
  found=$(capability)
  case $found in
    [0-9]*.[0-9]*)
      found=${found//[!0-9]/}
      if ((found >= 90)); then echo "sm_${found}a"; else echo "sm_$found"; fi
      ;;
    *) echo native ;;
  esac
}
# What the programs in build/gpu are made of and for: two words.
built=$build/built
if $no_build; then
  read -r revision arch <"$built" || { revision=unknown arch=unknown; }
else
  revision=$(git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)
  arch=${arch:-$(find_arch)}
fi

# --- Build -----------------------------------------------------------------------------------------

# compile OBJECT SOURCE COMMAND...: unless it is newer than all sources and made in the same way.
compile() {
  local object=$build/$1.o log
  log=$(log_of "build $1")
  shift
  local command="$* -o $object"
  if [[ -s $object && -f $object.how && $(<"$object.how") == "$command" ]] &&
    [[ -z $(find include tests bench/gpu -type f -newer "$object" ! -path '*/results/*' ! -name '*.md' \
      ! -name '*.py' ! -name '*.sh' -print -quit) ]]; then
    return 0
  fi
  rm -f "$object.how"
  "$@" -o "$object" >"$log" 2>&1 || return
  echo "$command" >"$object.how"
}

build_all() {
  # None is left from another build, which this one would pass off as its own.
  local program
  for program in check_reference "${tests[@]}" "${precisions[@]/#/gpu_bench_}"; do
    rm -f "$build/$program"
  done
  echo "$revision $arch" >"$built"
  if [[ -z $nvcc ]]; then
    note build failed 0 'no nvcc in PATH or /usr/local/cuda*/bin'
    return
  fi
  local eigen doctest start=$SECONDS object missing=()
  eigen=$(first_with Eigen/Core "${EIGEN_DIR:-}" /usr/include/eigen3 /usr/local/include/eigen3) ||
    missing+=('Eigen (EIGEN_DIR, /usr/include/eigen3)')
  doctest=$(first_with doctest/doctest.h "${DOCTEST_DIR:-}" /usr/include /usr/local/include) ||
    missing+=('doctest (DOCTEST_DIR, /usr/include)')
  # One set of options for the host side of all: the CPU's kernels must see the same vectors in every
  # source (backend/cpu/compiled_kernels.hpp). The tests share those of the GPU as well.
  local common=(-std=c++20 -DDEQ_COMPILED_KERNELS -I include ${eigen:+-isystem "$eigen"})
  local host=(g++ "${common[@]}" -O2) device=("$nvcc" "${common[@]}" --extended-lambda
    --expt-relaxed-constexpr --diag-suppress '554,20012' "-arch=$arch")
  # A level of the host's side alone; for tests one that is done sooner, as tests/CMakeLists.txt has it.
  local fast=-O3 soon=-O1
  # A path that the compiler searches anyway must not come first as a system path.
  local tested=(-I tests -DDEQ_COMPILED_CUDA_KERNELS)
  if [[ -n $doctest && $doctest != /usr/include ]]; then tested+=(-isystem "$doctest"); fi
  if [[ -n $march ]]; then
    host+=("-march=$march")
    device+=(-Xcompiler "-march=$march")
  fi

  # What takes long first; what needs headers that are not there is left out, and missed below.
  local -A command=()
  local order=() programs=()
  add() {
    order+=("$1")
    command[$1]="${*:2}"
  }
  if [[ -n $eigen ]]; then
    add cuda_kernels "${device[@]}" "$soon" -x cu -c tests/cuda_kernels.cpp
    add check_reference "${device[@]}" "$soon" "${tested[@]}" -DDEQ_REFERENCE_CUDA -x cu -c tests/check_reference.cpp
    add kernels "${host[@]}" -c tests/kernels.cpp
    programs+=(check_reference)
  fi
  for program in "${precisions[@]}"; do
    add "gpu_bench_$program" "${device[@]}" "$fast" -DNDEBUG "-DDEQ_GPU_BENCH_ONLY=$program" -c bench/gpu/gpu_bench.cu
    programs+=("gpu_bench_$program")
  done
  if [[ -n $eigen && -n $doctest ]]; then
    add main "${host[@]}" "${tested[@]}" -c tests/main.cpp
    for program in "${tests[@]}"; do
      add "$program" "${device[@]}" "$soon" "${tested[@]}" -x cu -c "tests/$program.cpp"
      programs+=("$program")
    done
  fi
  local running=0
  for object in "${order[@]}"; do
    if ((running >= jobs)); then
      wait -n || true
      running=$((running - 1))
    fi
    # No option has a space in it.
    # shellcheck disable=SC2086
    compile "$object" ${command[$object]} &
    running=$((running + 1))
  done
  wait

  for program in "${programs[@]}"; do
    local objects=("$build/$program.o")
    case $program in
      gpu_bench_*) ;;
      check_reference) objects+=("$build/kernels.o" "$build/cuda_kernels.o") ;;
      *) objects+=("$build/kernels.o" "$build/cuda_kernels.o" "$build/main.o") ;;
    esac
    for object in "${objects[@]}"; do
      if [[ ! -f $object.how ]]; then
        object=$(basename "$object" .o)
        note "build $program" failed $((SECONDS - start)) \
          "$object: $(last_words "$(log_of "build $object")")"
        continue 2
      fi
    done
    if "$nvcc" "-arch=$arch" -o "$build/$program" "${objects[@]}" >"$(log_of "link $program")" 2>&1; then
      note "build $program" passed $((SECONDS - start)) ''
    else
      note "build $program" failed $((SECONDS - start)) "link: $(last_words "$(log_of "link $program")")"
    fi
  done
  if ((${#missing[@]})); then
    note 'build of tests' failed $((SECONDS - start)) "not found: ${missing[*]}"
  fi
}

if ! $no_build; then
  echo "Building for $arch with ${nvcc:-no nvcc}, $jobs at a time" >&2
  build_all
fi
if $build_only; then exit $((failures > 0)); fi
if ! $gpu; then
  echo "There is no GPU here: built, but neither tested nor measured." >&2
  if ((failures)); then exit 1; fi
  exit 77
fi

# --- Tests -----------------------------------------------------------------------------------------

# All at the same time: what they wait for is mostly the host. Only a program that is there is run.
declare -A pid
passed_tests=0
if (($(left) >= 30)); then
  limit=$(($(left) < 150 ? $(left) : 150))
  start=$SECONDS
  for program in "${tests[@]}" check_reference; do
    if [[ ! -x $build/$program ]]; then
      note "$program" failed 0 'was not built'
      continue
    fi
    arguments=()
    if [[ $program == check_reference ]]; then arguments=(tests/data); fi
    timeout -k 5 "$limit" "$build/$program" ${arguments[@]+"${arguments[@]}"} >"$(log_of "$program")" 2>&1 &
    pid[$program]=$!
  done
  for program in "${tests[@]}" check_reference; do
    if [[ -z ${pid[$program]:-} ]]; then continue; fi
    code=0
    wait "${pid[$program]}" || code=$?
    judge "$program" "$code" $((SECONDS - start)) "$(proof_of "$program")"
    if [[ $outcome == passed ]]; then passed_tests=$((passed_tests + 1)); fi
  done
else
  for program in "${tests[@]}" check_reference; do note "$program" skipped 0 'no time'; done
fi

# --- Measurements ----------------------------------------------------------------------------------

bench() { echo "$build/gpu_bench_$1"; }
# measure STAGE NEEDS PRECISION FILE OPTION...
measure() {
  local name=$1 needs=$2 program file=$4
  program=$(bench "$3")
  shift 4
  if [[ -x $program ]]; then
    stage "$name" "$needs" 150 "$program" --batch "$batch" --seconds "$seconds" --json "$build/$file.json" "$@"
  else
    note "$name" failed 0 "$program was not built"
  fi
}
# What matters most comes first: time may be over at any point.
for precision in "${precisions[@]}"; do
  measure "measure model $precision" 20 "$precision" "model_$precision" --part model
done
for precision in "${precisions[@]}"; do
  measure "measure convolutions $precision" 20 "$precision" "convolutions_$precision" \
    --part convolutions --size large
done
measure 'measure passes' 15 Strict passes --part passes
epochs() { measure "measure two epochs $1" 60 "$1" "epochs_$1" --part epochs --size large; }
epochs Bf16

peer_json=$build/peer.json
python=$(command -v python3 || true)
if [[ -z $python ]]; then
  note 'PyTorch' skipped 0 'no python3'
else
  rm -rf "$build/data"
  peer_options=()
  if [[ -x $(bench Strict) ]]; then
    stage 'export for PyTorch' 15 60 "$(bench Strict)" --batch "$batch" --export "$build/data"
  else
    note 'export for PyTorch' failed 0 "$(bench Strict) was not built"
  fi
  if [[ $outcome != passed ]]; then peer_options=(--part convolutions); fi
  # A minute stays for the sanitizers.
  peer_seconds=$(($(left) - 60))
  if ((peer_seconds < 20)); then
    note 'PyTorch' skipped 0 'no time'
  else
    # It ends by itself; what it has written if it does not is in the result all the same.
    code=0 start=$SECONDS
    timeout -k 5 $((peer_seconds + 15)) "$python" bench/gpu/peer.py --data "$build/data" --json "$peer_json" \
      --batch "$batch" --seconds "$seconds" --deadline "$peer_seconds" \
      ${peer_options[@]+"${peer_options[@]}"} >"$(log_of PyTorch)" 2>&1 || code=$?
    if [[ ! -f $peer_json ]] && ((code == 0)); then
      note 'PyTorch' skipped $((SECONDS - start)) "$(tail -n 1 "$(log_of PyTorch)")"
    else
      judge 'PyTorch' "$code" $((SECONDS - start))
    fi
  fi
fi

for precision in "${precisions[@]}"; do
  measure "measure small convolutions $precision" 60 "$precision" "small_$precision" \
    --part convolutions --size tiny
done
if $all_epochs; then for precision in Tf32 Strict; do epochs "$precision"; done; fi

# --- Sanitizers ------------------------------------------------------------------------------------

# sanitize TOOL PROGRAM [TEST_CASES]
sanitize() {
  local name="$1 $2${3:+: $3}" code=0 start=$SECONDS limit=$((($(left) - 10) / 2))
  if [[ -z $sanitizer ]]; then
    note "$name" skipped 0 'no compute-sanitizer'
  elif [[ ! -x $build/$2 ]]; then
    note "$name" skipped 0 'was not built'
  elif ((limit < 15)); then
    note "$name" skipped 0 'no time'
  else
    # None takes more than half of what is left for all.
    DEQ_CUDA_MEMORY_APART=1 timeout -k 5 "$limit" "$sanitizer" --tool "$1" --error-exitcode 3 \
      "$build/$2" ${3:+"--test-case=$3"} >"$(log_of "$name")" 2>&1 || code=$?
    if grep -qi 'device not supported' "$(log_of "$name")"; then
      note "$name" skipped $((SECONDS - start)) 'compute-sanitizer: device not supported'
    else
      judge "$name" "$code" $((SECONDS - start)) "$(proof_of "$2")"
    fi
  fi
}
# What takes long comes last: every convolution under racecheck, so a few of their tests go first.
for tool in memcheck initcheck; do
  for program in cuda_contract_test cuda_conv_test cuda_graph_test; do sanitize "$tool" "$program"; done
done
for program in cuda_contract_test cuda_graph_test; do sanitize racecheck "$program"; done
for cases in 'A block takes several tiles*' 'Statistics taken*' '*stored as bfloat16*' '*and its gradients*'; do
  sanitize racecheck cuda_conv_test "$cases"
done

# --- The table -------------------------------------------------------------------------------------

# A run in which a test did nothing shows nothing.
code=0
if ((failures || passed_tests < ${#tests[@]} + 1)); then code=1; fi
if [[ -z $python ]]; then
  echo "No python3: what was measured is in $build/*.json, the stages are in $stages" >&2
  exit "$code"
fi
results=()
for file in "$build"/{model,convolutions,small,epochs}_*.json "$build/passes.json"; do
  if [[ -e $file ]]; then results+=("$file"); fi
done
options=()
if [[ -e $peer_json ]]; then options+=(--peer "$peer_json"); fi
"$python" bench/gpu/table.py --out "$out" --revision "$revision" --arch "$arch" --stages "$stages" \
  ${options[@]+"${options[@]}"} ${results[@]+"${results[@]}"} || code=1
if ((passed_tests < ${#tests[@]} + 1)); then
  echo "Of $((${#tests[@]} + 1)) test programs only $passed_tests passed." >&2
fi
exit "$code"
