#include <malloc.h>

#include "kv_service/rpc/heap.h"

namespace fourierkv {

HeapStats ReadHeap() {
  const struct mallinfo2 info = mallinfo2();
  return {.allocated_bytes = static_cast<int64_t>(info.uordblks + info.hblkhd),
          .held_bytes = static_cast<int64_t>(info.arena + info.hblkhd)};
}

absl::string_view HeapName() { return "system"; }

void ReleaseFreeHeap() { malloc_trim(0); }

}  // namespace fourierkv
