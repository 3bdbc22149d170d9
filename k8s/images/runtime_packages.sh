#!/bin/sh
# Prints, one a line, the packages of this distribution that hold the shared libraries which the given programs load, so
# that an image gets these and no others. Run where the programs were built.
set -eu
[ $# -gt 0 ] || { echo "usage: $0 PROGRAM..." >&2; exit 2; }

# A line of ldd is "NAME => PATH (ADDRESS)", "NAME => not found", or "NAME (ADDRESS)" of the loader and of the kernel's own.
libraries=$(ldd "$@")
if printf '%s\n' "$libraries" | grep 'not found'; then
  echo "$0: these libraries are missing" >&2
  exit 1
fi
files=$(printf '%s\n' "$libraries" |
  sed -n -e 's/.* => \(\/[^ ]*\) (.*/\1/p' -e 's/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u | xargs readlink -f | sort -u)

# Packages may name a file by /lib or by /usr/lib, which are the same folder.
owners=$(printf '%s\n' "$files" | sed -e 'p; s,^/usr/lib,/lib,; t' -e 's,^/lib,/usr/lib,' | sort -u |
  xargs dpkg-query -S 2>/dev/null || true)
for file in $files; do
  printf '%s\n' "$owners" | grep -q "[: ]\(/usr\)\?${file#/usr}\$" || { echo "$0: no package holds $file" >&2; exit 1; }
done
printf '%s\n' "$owners" | sed 's/:.*//' | sort -u
