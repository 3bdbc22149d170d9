# Prints the project's C++ files that end in one of the given suffixes, one a line, in a git checkout or a
# plain copy of the tree.
sources() {
  for suffix in "$@"; do
    find proto compute kernels kv_service clients tests -name "*.$suffix" 2>/dev/null
  done | sort
}
