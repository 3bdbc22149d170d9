// Counts of durations.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

namespace fourierkv {

// Thread safe; counters only grow.
class LatencyHistogram {
 public:
  // Upper bounds in seconds; one more bucket takes the rest.
  static constexpr std::array<double, 13> kBounds = {0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.05,
                                                     0.1,    0.3,    1,     3,     10,   30};
  using Counts = std::array<uint64_t, kBounds.size() + 1>;

  void Record(absl::Duration elapsed);
  Counts counts() const;
  double sum_seconds() const;

 private:
  std::array<std::atomic<uint64_t>, kBounds.size() + 1> counts_{};
  std::atomic<uint64_t> nanoseconds_{0};
};

}  // namespace fourierkv
