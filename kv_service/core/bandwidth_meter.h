// A running estimate of how fast bytes come.

#pragma once

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

namespace fourierkv {

// Bytes per second of recent transfers. Thread safe.
class BandwidthMeter {
 public:
  // Ignores transfers too small to tell.
  void Record(int64_t bytes, absl::Duration elapsed);
  // 0 before the first record.
  double bytes_per_second() const { return rate_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> rate_{0};
};

}  // namespace fourierkv
