#!/bin/sh
# Runs clang-tidy on every source file of the libraries and programs. A file that passed is not looked at again until it,
# a header of the project or the configuration changes.
set -eu
. "$(dirname "$0")/sources.sh"
tidy=$1
build=$2
stamps=$build/tidy
mkdir -p "$stamps"
shared=$( { "$tidy" --version; cat .clang-tidy; sources h | xargs cat; cat proto/fourierkv/v1/*.proto; } |
  sha256sum | cut -c1-32)
export tidy build stamps shared
sources cc | grep -v "^tests/" | xargs -P "$(nproc)" -n 1 sh -c '
  grep -q "\"file\": \"$PWD/$0\"" "$build/compile_commands.json" || exit 0
  stamp=$stamps/$(printf "%s %s" "$shared" "$0" | cat - "$0" | sha256sum | cut -c1-32)
  [ -e "$stamp" ] && exit 0
  if output=$("$tidy" -p "$build" --quiet "$0" 2>&1); then
    touch "$stamp"
  else
    printf "%s\n" "$output" | grep -v "warnings generated\|^Suppressed" >&2
    exit 1
  fi
'
