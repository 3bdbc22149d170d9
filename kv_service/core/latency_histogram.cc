#include "kv_service/core/latency_histogram.h"

#include <algorithm>

namespace fourierkv {

void LatencyHistogram::Record(absl::Duration elapsed) {
  const auto bucket =
      std::lower_bound(kBounds.begin(), kBounds.end(), absl::ToDoubleSeconds(elapsed)) -
      kBounds.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  nanoseconds_.fetch_add(static_cast<uint64_t>(absl::ToInt64Nanoseconds(elapsed)),
                         std::memory_order_relaxed);
}

LatencyHistogram::Counts LatencyHistogram::counts() const {
  Counts counts;
  for (size_t i = 0; i < counts.size(); ++i) counts[i] = counts_[i].load();
  return counts;
}

double LatencyHistogram::sum_seconds() const {
  return static_cast<double>(nanoseconds_.load()) * 1e-9;
}

}  // namespace fourierkv
