# SPDX-License-Identifier: MIT
# Sourced by other scripts: `ensure_packages PACKAGE...` installs the Debian or Ubuntu packages that are
# missing, if it may (as root, or by sudo without a password); otherwise it prints the one line to
# run, and returns 1. Where there is no apt-get it does nothing: CMake then says what it misses.

# Whether a package's files are there, however they came.
have_package() {
  case $1 in
    build-essential) command -v g++ make >/dev/null ;;
    cmake | g++ | clang | clang-format | python3) command -v "$1" >/dev/null ;;
    ninja-build) command -v ninja >/dev/null ;;
    *) [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]] ;;
  esac
}

ensure_packages() {
  local package missing=() as_root=() log
  command -v apt-get >/dev/null || return 0
  for package in "$@"; do
    have_package "$package" || missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0

  if [[ $(id -u) != 0 ]]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
      echo "Packages are missing. Please run: sudo apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo -n)
  fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
  local install=("${as_root[@]}" install -y --no-install-recommends "${missing[@]}")

  echo "Installing ${missing[*]}"
  log=$(mktemp)
  # The lists are fetched only if what they say does not do: empty, or older than the archive.
  if ! "${install[@]}" >"$log" 2>&1 &&
    ! { "${as_root[@]}" update >"$log" 2>&1 && "${install[@]}" >>"$log" 2>&1; }; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "Packages could not be installed. Please run: sudo apt-get install ${missing[*]}" >&2
    return 1
  fi
  rm -f "$log"
}
