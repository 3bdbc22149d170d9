#include <jemalloc/jemalloc.h>

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "kv_service/rpc/heap.h"

// Read by jemalloc before main; MALLOC_CONF in the environment adds to it. After a second rather
// than ten: what a store replaces in ten seconds is a good part of its memory.
extern "C" {
const char* malloc_conf = "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0";
}

namespace fourierkv {
namespace {

int64_t Read(const char* name) {
  size_t value = 0;
  size_t size = sizeof value;
  return mallctl(name, &value, &size, nullptr, 0) == 0 ? static_cast<int64_t>(value) : 0;
}

}  // namespace

HeapStats ReadHeap() {
  uint64_t epoch = 1;  // what is read is of the moment of this
  size_t size = sizeof epoch;
  mallctl("epoch", &epoch, &size, &epoch, size);
  return {.allocated_bytes = Read("stats.allocated"), .held_bytes = Read("stats.resident")};
}

absl::string_view HeapName() { return "jemalloc"; }

void ReleaseFreeHeap() {
  const std::string purge = absl::StrCat("arena.", MALLCTL_ARENAS_ALL, ".purge");
  mallctl(purge.c_str(), nullptr, nullptr, nullptr, 0);
}

}  // namespace fourierkv
