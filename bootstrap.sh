#!/bin/sh
# Installs the distribution packages that building and testing FourierKV needs (Debian 12, Ubuntu 24.04).
# Does nothing, and needs neither network nor root, when they are all there. Arguments are more packages.
set -eu

packages="
  build-essential cmake ninja-build ccache pkg-config git
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev
  libabsl-dev libssl-dev libxxhash-dev libhwy-dev libopenblas-pthread-dev
  librocksdb-dev libzstd-dev nlohmann-json3-dev libcli11-dev libspdlog-dev prometheus-cpp-dev libcpp-httplib-dev
  libjwt-dev libjemalloc-dev
  libhiredis-dev redis-server
  libgtest-dev libgmock-dev clang-format-14 clang-tidy-14
  openssl python3 python3-yaml python3-jsonschema
  $*
"

installed() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

command -v dpkg-query >/dev/null || {
  echo "bootstrap: this is not Debian or Ubuntu; install by hand:$packages" >&2
  exit 1
}

missing=
for package in $packages; do
  installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=
elif command -v sudo >/dev/null; then
  as_root=sudo
else
  echo "bootstrap: packages are missing and there is neither root nor sudo; as root, run:" >&2
  echo "  apt-get install --no-install-recommends$missing" >&2
  exit 1
fi

echo "bootstrap: installing$missing" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
  # The packages' own chatter is shown only if something fails.
  if ! $as_root env DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1; then
    cat "$log" >&2
    echo "bootstrap: failed: $*" >&2
    exit 1
  fi
}
run apt-get update
# shellcheck disable=SC2086
run apt-get install -y --no-install-recommends $missing
