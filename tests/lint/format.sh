#!/bin/sh
# Fails, naming the places, unless every C++ file is formatted as .clang-format says.
set -eu
. "$(dirname "$0")/sources.sh"
sources cc h cu cuh | xargs "$1" --dry-run --Werror
