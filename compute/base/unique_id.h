// Numbers that name things within one process.

#pragma once

#include <atomic>
#include <cstdint>

namespace fourierkv {

// Never 0 and never the same twice. Thread safe.
inline uint64_t NextUniqueId() {
  static std::atomic<uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace fourierkv
