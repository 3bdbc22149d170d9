// The allocator of the programs that keep a store. Linking it chooses it.
//
// A store frees what it allocated hours apart and in other sizes than it allocates next. glibc's
// malloc keeps the holes: with a budget of 1 GB it took 1.6 GB, and more with time. jemalloc gives
// pages that were free for a second back to the kernel, from a thread of its own. Builds with
// sanitizers, which bring an allocator of their own, have the system's.

#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace fourierkv {

struct HeapStats {
  int64_t allocated_bytes = 0;  // as the program asked for, rounded to the allocator's sizes
  int64_t held_bytes = 0;       // of the kernel: that, what waits to be used again, bookkeeping
};

// Thread safe, without waiting for others. The system's allocator counts under the locks that it
// allocates under, for as long as there are holes to count: milliseconds.
HeapStats ReadHeap();

// "jemalloc" or "system".
absl::string_view HeapName();

// What waits to be used again goes back to the kernel now, as far as that is possible. For tests.
void ReleaseFreeHeap();

}  // namespace fourierkv
