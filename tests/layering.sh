#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# layering.sh [INCLUDE_DIR]: an include never points upward (docs/architecture.md), and the code that
# serves every backend names none. Without an argument: first that this script finds what it should
# in a tree made up to be bad, then the headers of this repository.
set -euo pipefail

# A folder, and the folders that its headers may include besides their own.
declare -A below
below[core]=''
below[io]='core'
below[backend]='core'
below[inverse]='core backend'
below[solver]='core backend inverse'
below[tape]='core backend'
below[backward]='core backend inverse solver'
below[layer]='core backend inverse solver tape backward'
below[nn]="${below[layer]} layer io"
below[model]="${below[nn]} nn"

# Folders whose code runs on any backend: no Eigen, no CUDA, nothing of a particular backend.
backend_free='inverse solver backward'

contains() { [[ " $1 " == *" $2 "* ]]; }

# offence FROM TO: why the header FROM must not include TO, if so (both relative to the include dir).
offence() {
  local from=${1#deq/} to=${2#deq/}
  local from_folder=${from%%/*} to_folder=${to%%/*}
  [[ $to == version.hpp ]] && return 0
  if [[ $from != */* ]]; then  # an umbrella: all but a backend that needs another compiler
    if [[ $from == *.hpp && $to == backend/cuda/* ]]; then echo "host header includes CUDA"; fi
  elif [[ $to != */* ]]; then
    echo "includes an umbrella header"
  elif [[ -z ${below[$from_folder]+known} ]]; then
    echo "folder $from_folder has no floor yet: give it one in tests/layering.sh"
  elif [[ $from_folder != "$to_folder" ]] && ! contains "${below[$from_folder]}" "$to_folder"; then
    echo "$from_folder must not include $to_folder"
  elif [[ $to == backend/*/* ]]; then
    local to_backend=${to#backend/}
    to_backend=backend/${to_backend%%/*}
    if contains "$backend_free" "$from_folder"; then
      echo "$from_folder serves every backend"
    elif [[ $from_folder == backend && $from != "$to_backend"/* ]]; then
      echo "a backend is included only by its own headers and from above"
    fi
  fi
}

# check INCLUDE_DIR: prints one line an offence.
check() {
  cd "$1"
  local from line to why folder
  while IFS=: read -r from line to; do
    why=$(offence "$from" "$to")
    if [[ -n $why ]]; then echo "$from:$line: <$to>: $why"; fi
  done < <(grep -rnoE '^\s*#\s*include\s*<deq/[^>]+' deq | sed -E 's/\s*#\s*include\s*<//')
  grep -rnE '^\s*#\s*include\s*"' deq | sed 's/$/: write <deq\/...>/' || true
  for folder in $backend_free; do
    [[ -d deq/$folder ]] || continue
    find "deq/$folder" -type f -print0 | sort -z | while IFS= read -r -d '' from; do
      # Comments go, line numbers stay.
      sed -E 's#//.*##; s#/\*([^*]|\*[^/])*\*/##g' "$from" | sed '/\/\*/,/\*\//s/.*//' |
        grep -nE '\bEigen\b|[Cc]uda|CUDA' | sed "s|^|$from:|; s|\$|: $folder serves every backend|" || true
    done
  done
}

self_test() {
  local tree=$1 offences expected count=0
  header() {  # header PATH LINE...
    mkdir -p "$(dirname "$tree/deq/$1")"
    printf '%s\n' "${@:2}" >"$tree/deq/$1"
  }
  header version.hpp ''
  header core/good.hpp '#include <vector>' '#include <deq/version.hpp>' '#include <deq/core/other.hpp>'
  header backend/cpu/good.hpp '#include <Eigen/Core>' '#include <deq/backend/concept.hpp>'
  header solver/good.hpp '#include <deq/inverse/concept.hpp>' '// Eigen would do' '/* so would' ' cuda */'
  header layer/good.hpp '#include <deq/backend/cpu/cpu.hpp>' '#include <deq/tape/tape.hpp>'
  header deq.hpp '#include <deq/model/mdeq.hpp>'
  offences=$(check "$tree")
  if [[ -n $offences ]]; then
    printf 'layering.sh complains about a good tree:\n%s\n' "$offences"
    return 1
  fi

  header core/bad.hpp '#include <deq/backend/concept.hpp>'
  header backend/concept.hpp '#include <deq/backend/cpu/cpu.hpp>'
  header backend/cpu/bad.hpp '#  include <deq/backend/cuda/cuda.cuh>'
  header backend/cuda/bad.cuh '#include <deq/backend/cpu/cpu.hpp>'
  header inverse/bad.hpp '#include <deq/solver/concept.hpp>'
  header solver/tape.hpp '#include <deq/tape/tape.hpp>'
  header solver/backend.hpp '#include <deq/backend/cpu/cpu.hpp>'
  header solver/eigen.hpp '/* a matrix */ Eigen::MatrixXd m;  // here'
  header tape/bad.hpp '#include <deq/solver/concept.hpp>'
  header backward/tape.hpp '#include <deq/tape/tape.hpp>'
  header backward/cuda.hpp 'cudaStream_t stream;'
  header layer/bad.hpp '#include <deq/nn/adam.hpp>'
  header nn/umbrella.hpp '#include <deq/deq.hpp>'
  header nn/quoted.hpp '#include "../model/mdeq.hpp"'
  header model/bad.hpp '#include <deq/attic/old.hpp>'
  header io/bad.hpp '#include <deq/tape/tensor.hpp>'
  header attic/old.hpp '#include <deq/core/good.hpp>'
  header umbrella.hpp '#include <deq/backend/cuda/cuda.cuh>'
  offences=$(check "$tree")
  for expected in core/bad backend/concept backend/cpu/bad backend/cuda/bad inverse/bad solver/tape \
    solver/backend solver/eigen tape/bad backward/tape backward/cuda layer/bad nn/umbrella nn/quoted \
    model/bad io/bad attic/old umbrella; do
    count=$((count + 1))
    if ! grep -q "^deq/$expected[.]" <<<"$offences"; then
      printf 'layering.sh overlooks deq/%s in a bad tree; it found:\n%s\n' "$expected" "$offences"
      return 1
    fi
  done
  if [[ $(wc -l <<<"$offences") != "$count" ]]; then
    printf 'layering.sh finds more than the %s offences of a bad tree:\n%s\n' "$count" "$offences"
    return 1
  fi
}

if [[ $# -eq 0 ]]; then
  bad_tree=$(mktemp -d)
  trap 'rm -rf "$bad_tree"' EXIT
  (self_test "$bad_tree")
fi

include_dir=${1:-$(dirname "${BASH_SOURCE[0]}")/../include}
offences=$(check "$include_dir")
if [[ -n $offences ]]; then
  printf 'Includes that point upward or sideways:\n%s\n' "$offences"
  exit 1
fi
echo "layering: $(find "$include_dir/deq" -type f | wc -l) headers, every include points down"
