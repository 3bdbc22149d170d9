#include "kv_service/core/bandwidth_meter.h"

namespace fourierkv {
namespace {

constexpr int64_t kSmallestMeasured = 256 << 10;
constexpr double kNewShare = 0.2;

}  // namespace

void BandwidthMeter::Record(int64_t bytes, absl::Duration elapsed) {
  if (bytes < kSmallestMeasured || elapsed <= absl::ZeroDuration()) return;
  const double now = static_cast<double>(bytes) / absl::ToDoubleSeconds(elapsed);
  double old = rate_.load(std::memory_order_relaxed);
  while (!rate_.compare_exchange_weak(old, old == 0 ? now : old + kNewShare * (now - old),
                                      std::memory_order_relaxed)) {
  }
}

}  // namespace fourierkv
