// Calls a tier from threads of its own, so that nobody waits longer for it than he said, and
// counts.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_service/core/bandwidth_meter.h"
#include "kv_service/core/latency_histogram.h"
#include "kv_service/core/segment_tier.h"

namespace fourierkv {

struct TierMetrics {
  std::atomic<uint64_t> hits{0};    // forms asked for and loaded
  std::atomic<uint64_t> misses{0};  // asked for and not, for whatever reason
  std::atomic<uint64_t> late{0};    // of these, those that did not come in time
  std::atomic<uint64_t> loaded_bytes{0};
  std::atomic<uint64_t> stored_bytes{0};  // of forms offered; what is held is not written again
  std::atomic<uint64_t> store_failures{0};
  // Stores and forms asked for that the caller gave up on before the tier had answered. They are in
  // none of the counts above.
  std::atomic<uint64_t> cancelled{0};
  LatencyHistogram load_latency;
  LatencyHistogram store_latency;
  // How long calls that somebody gave up on went on after that.
  LatencyHistogram overrun;
  BandwidthMeter load_bandwidth;
};

// A want that outlives whoever asked.
struct OwnedWant {
  StoredSegment segment;
  SegmentForm form = SegmentForm::kExact;
};

// Thread safe. Calls return as soon as the caller's patience is over, with Patience::Over, whatever
// the tier does; what it still does then is dropped when it is done. Unavailable when so much is
// queued that the tier seems to be stuck.
class TierRunner {
 public:
  TierRunner(std::shared_ptr<SegmentTier> tier, int threads);
  // Waits for calls that are running.
  ~TierRunner();
  TierRunner(const TierRunner&) = delete;
  TierRunner& operator=(const TierRunner&) = delete;

  SegmentTier& tier() const { return *tier_; }
  const TierMetrics& metrics() const { return metrics_; }

  absl::Status Store(std::vector<StoredSegment> segments, const Patience& patience);
  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(std::vector<BlockKey> keys,
                                                                   const Patience& patience);
  // In parallel; what came in time is there, the rest is Patience::Over.
  std::vector<absl::StatusOr<FormPtr>> Load(std::vector<OwnedWant> wants,
                                            std::shared_ptr<MemoryBudget> budget,
                                            const Patience& patience);
  // Goes on when patience is over. Lets go of `until_done` when the tier has removed them, or never
  // will: before the call returns, unless it returns because patience is over.
  absl::Status Remove(std::vector<BlockKey> keys, const Patience& patience,
                      std::shared_ptr<const void> until_done = nullptr);
  absl::Status StoreProfile(std::shared_ptr<const ProfileLayout> profile, const Patience& patience);

 private:
  // False if too much is queued.
  bool Post(std::function<void()> job);
  void Work();
  // To be called when the tier is done with a call.
  void NoteOverrun(const Patience& patience);

  const std::shared_ptr<SegmentTier> tier_;
  TierMetrics metrics_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace fourierkv
