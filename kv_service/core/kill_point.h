// Named moments at which a test may end the process, as a power cut would.

#pragma once

#include <atomic>

namespace fourierkv {

// Called with the name of every point that is passed. Null but in the crash test's own program: in
// any other one a point costs a load and a branch.
inline std::atomic<void (*)(const char* name)> kill_point_hook{nullptr};

inline void KillPoint(const char* name) {
  if (auto* const hook = kill_point_hook.load(std::memory_order_relaxed); hook != nullptr) {
    hook(name);
  }
}

}  // namespace fourierkv
