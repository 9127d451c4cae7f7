#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# docs_check.sh [ROOT]: the code in documents is code that compiles, and links lead somewhere. In
# README.md and docs/*.md the nearest line above a cpp block is a comment that names a source file:
#
#     <!-- tests/guide_test.cpp -->             the block is a run of lines of that file
#     <!-- examples/quickstart.cpp, whole -->   the block is that file
#
# Indentation that all lines of a block share does not count, blank lines do. A relative link names
# an existing file. Without an argument: first that this script finds what it should in documents
# made up to be bad, then the documents of this repository.
set -euo pipefail

# check_code DOCUMENT: prints one line an offence.
check_code() {
  awk '
    function complain(line, text) { printf "%s:%d: %s\n", FILENAME, line, text }
    function indentation(s) { match(s, /^ */); return RLENGTH }
    function is_blank(s) { return s ~ /^ *$/ }

    # Reads a file once; afterwards lines[path] is -1 if there is none.
    function load(path,    line, got) {
      if (path in lines) return
      lines[path] = 0
      while ((got = (getline line < path)) > 0) text[path, ++lines[path]] = line
      if (got < 0) lines[path] = -1
      else close(path)
    }

    function remove_common_indentation(    i, common) {
      common = -1
      for (i = 1; i <= size; ++i)
        if (!is_blank(block[i]) && (common < 0 || indentation(block[i]) < common))
          common = indentation(block[i])
      for (i = 1; i <= size; ++i) block[i] = substr(block[i], common + 1)
    }

    # How many lines of the block agree with the file from its line `first` on.
    function agreement(path, first,    i, line, shift) {
      shift = -1
      for (i = 1; i <= size && first + i - 1 <= lines[path]; ++i) {
        line = text[path, first + i - 1]
        if (is_blank(block[i]) && is_blank(line)) continue
        if (shift < 0) shift = indentation(line) - indentation(block[i])
        if (shift < 0 || !is_blank(substr(line, 1, shift))) break
        if (substr(line, shift + 1) != block[i]) break
      }
      return i - 1
    }

    function check_block(    path, whole, first, last, n, best, where, there) {
      if (comment !~ /^<!-- [^ ,]+(, whole)? -->$/)
        return complain(start, "no comment above this block names its file: <!-- path -->")
      path = substr(comment, 6, length(comment) - 9)
      whole = sub(/, whole$/, "", path)
      load(path)
      if (lines[path] < 0) return complain(start, "there is no file " path)
      remove_common_indentation()
      best = -1
      last = whole ? 1 : lines[path]
      for (first = 1; first <= last; ++first)
        if ((n = agreement(path, first)) > best) {
          best = n
          where = first + n
        }
      there = where <= lines[path] ? "\"" text[path, where] "\"" : "the end of the file"
      if (size == 0)
        complain(start, "an empty block")
      else if (best < size && best > 0)
        complain(start + best + 1, "\"" block[best + 1] "\": " path ":" where " has " there)
      else if (best < size)
        complain(start + 1, "\"" block[1] "\" is not in " path)
      else if (whole && size < lines[path])
        complain(start + size + 1, "the block ends, but " path ":" where " has " there)
    }

    fence && /^ *``` *$/ {
      if (fence == "cpp") check_block()
      fence = comment = ""
      next
    }
    fence { block[++size] = $0; next }
    /^ *```/ {
      fence = /^ *``` *(cpp|c\+\+|C\+\+)/ ? "cpp" : "other"
      start = FNR
      size = 0
      next
    }
    !is_blank($0) { comment = $0; sub(/^ */, "", comment); sub(/ *$/, "", comment) }
    END { if (fence) complain(start, "the block has no end") }
  ' "$1"
}

# check_links DOCUMENT: prints one line an offence. Blocks and `code` hold no links.
check_links() {
  local line target
  awk '/^ *```/ { inside = !inside } { print inside ? "" : $0 }' "$1" | sed 's/`[^`]*`//g' |
    { grep -noE '(\]\(|(src|href)=")[^)" ]+' || true; } |
    while IFS=: read -r line target; do
      target=${target#*[\(\"]}
      if [[ $target == *:* ]]; then continue; fi
      target=${target%%#*}
      if [[ -n $target && ! -e $(dirname "$1")/$target ]]; then
        echo "$1:$line: the link $target leads nowhere"
      fi
    done
}

# check ROOT: prints one line an offence.
check() {
  cd "$1"
  local document
  for document in README.md docs/*.md; do
    check_code "$document"
    check_links "$document"
  done
}

self_test() {
  local root=$1 offences expected count=0
  mkdir "$root/docs" "$root/examples"
  printf '%s\n' 'int main() {' '  int x = 1;' '' '  if (x)' '    return 0;' '}' \
    >"$root/examples/program.cpp"
  document() { printf '%s\n' "${@:2}" >"$root/$1.md"; }
  local comment='<!-- examples/program.cpp -->' whole='<!-- examples/program.cpp, whole -->'

  document README "$whole" '```cpp' 'int main() {' '  int x = 1;' '' '  if (x)' '    return 0;' '}' '```' \
    'See [the `good` page](docs/good.md#part), [this](#part) and [that](https://example.org/).'
  document docs/good "$comment" '' '```cpp' 'int x = 1;' '' 'if (x)' '```' \
    "$comment" '```cpp' '  if (x)' '    return 0;' '```' \
    '```sh' 'echo any text [](here)' '```' 'A lambda is `[](int) {}`; [up](../README.md), [program](../examples).'
  offences=$(check "$root")
  if [[ -n $offences ]]; then
    printf 'docs_check.sh complains about good documents:\n%s\n' "$offences"
    return 1
  fi

  document docs/no_comment 'Text.' '```cpp' 'int x = 1;' '```'
  document docs/comment_of_another_block "$comment" '```cpp' 'int x = 1;' '```' '```cpp' 'if (x)' '```'
  document docs/text_between "$comment" 'Text.' '```cpp' 'int x = 1;' '```'
  document docs/no_file '<!-- examples/none.cpp -->' '```cpp' 'int x = 1;' '```'
  document docs/other_line "$comment" '```cpp' 'int y = 1;' '```'
  document docs/other_second_line "$comment" '```cpp' 'int main() {' '  int y = 1;' '```'
  document docs/other_spelling '<!-- none -->' '```c++' 'int y = 1;' '```'
  document docs/line_left_out "$comment" '```cpp' 'int main() {' '' '  if (x)' '```'
  document docs/blank_line_left_out "$comment" '```cpp' 'int x = 1;' 'if (x)' '```'
  document docs/blank_line_too_many "$comment" '```cpp' 'int main() {' '' '  int x = 1;' '```'
  document docs/indentation "$comment" '```cpp' 'if (x)' 'return 0;' '```'
  document docs/beyond_the_end "$comment" '```cpp' '    return 0;' '}' '}' '```'
  document docs/not_whole "$whole" '```cpp' 'int main() {' '  int x = 1;' '```'
  document docs/whole_but_the_start "$whole" '```cpp' '  if (x)' '    return 0;' '}' '```'
  document docs/empty "$comment" '```cpp' '```'
  document docs/no_end "$comment" '```cpp' 'int x = 1;'
  document docs/link 'See [there](nowhere.md#part).'
  document docs/link_from_the_root 'See [there](docs/good.md).'
  document docs/image '<img src="none.svg">'
  offences=$(check "$root")
  for expected in no_comment comment_of_another_block text_between no_file other_line other_second_line \
    other_spelling line_left_out blank_line_left_out blank_line_too_many indentation beyond_the_end \
    not_whole whole_but_the_start empty no_end link link_from_the_root image; do
    count=$((count + 1))
    if ! grep -q "^docs/${expected}[.]md:" <<<"$offences"; then
      printf 'docs_check.sh overlooks docs/%s.md, which is bad; it found:\n%s\n' "$expected" "$offences"
      return 1
    fi
  done
  if [[ $(wc -l <<<"$offences") != "$count" ]]; then
    printf 'docs_check.sh finds more than the %s offences of bad documents:\n%s\n' "$count" "$offences"
    return 1
  fi
}

if [[ $# -eq 0 ]]; then
  bad_root=$(mktemp -d)
  trap 'rm -rf "$bad_root"' EXIT
  (self_test "$bad_root")
fi

root=${1:-$(dirname "${BASH_SOURCE[0]}")/..}
offences=$(check "$root")
if [[ -n $offences ]]; then
  printf 'Documents that differ from the code, or links that lead nowhere:\n%s\n' "$offences"
  exit 1
fi
echo "docs_check: every block is code of this repository, every link leads somewhere"
