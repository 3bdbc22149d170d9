// The KV cache of one sequence in device memory.

#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/cache/cuda/device_kv_pool.h"
#include "compute/cache/exact_places.h"
#include "compute/cache/fill_target.h"
#include "compute/cache/kv_budget.h"
#include "compute/cache/kv_cache.h"

namespace fourierkv {

struct DeviceCacheOptions {
  bool compact = true;           // false: everything stays exact
  int64_t recent_window = 1024;  // W: at least so many of the last tokens stay exact; 0 to 2^20
  int64_t max_tokens = 0;        // 1 to kMaxCacheTokens
  // Segments in which any part of any layer has a larger measured error stay exact.
  float max_relative_error = std::numeric_limits<float>::infinity();
};

// A segment that has been made compact, in one of its cache's slots.
struct DeviceSealed {
  int64_t segment = 0;
  int32_t slot = 0;
  std::vector<float> relative_errors;  // index: layer * 2 + part
};

// Which places of a pool a sequence has, by the same rules as CompactKvCache: segment 0 is exact,
// and whenever more than W + S tokens are exact behind the compact part, the oldest S of them are
// due to be encoded, which SegmentSealer does. The numbers are computed elsewhere: this is the book
// that is kept. One thread, the pool's; gives its places back when destroyed, until when nothing on
// the device may use them.
class DeviceKvCache {
 public:
  // InvalidArgument for options out of bounds.
  static absl::StatusOr<std::unique_ptr<DeviceKvCache>> Create(std::shared_ptr<DeviceKvPool> pool,
                                                               const DeviceCacheOptions& options);
  ~DeviceKvCache();
  DeviceKvCache(const DeviceKvCache&) = delete;
  DeviceKvCache& operator=(const DeviceKvCache&) = delete;

  const DeviceKvPool& pool() const { return *pool_; }
  int64_t max_tokens() const { return options_.max_tokens; }
  float max_relative_error() const { return options_.max_relative_error; }

  // Tokens whose KV is complete in every layer, i.e. the position of the next token.
  int64_t length() const { return length_; }
  int64_t exact_tokens() const { return length_ - compact_tokens(); }
  int64_t compact_tokens() const { return places_.compact_tokens(); }
  // Where the exact tokens stand: the one with index i in blocks()[i / S].
  const ExactPlaces& places() const { return places_; }
  CacheStats stats() const;
  // Of the places that the sequence has taken from the pool.
  int64_t bytes() const;

  // ResourceExhausted if `tokens` more tokens are beyond max_tokens.
  absl::Status CheckRoom(int64_t tokens) const;
  // Places for the next `tokens` tokens. ResourceExhausted as CheckRoom says or when the pool has
  // no more blocks; what was taken by then stays reserved.
  absl::Status Reserve(int64_t tokens);
  // The next `tokens` tokens have been written to their places. FailedPrecondition if these were
  // not reserved.
  absl::Status Advance(int64_t tokens);

  // FailedPrecondition if the cache is not empty; errors of CheckFillPlan.
  absl::Status CheckFill(const FillPlan& plan) const;
  // What a plan takes of the pool.
  KvPlaces PlacesOf(const FillPlan& plan) const;
  // The cache, still empty, gets length and places of the plan; writing what belongs there is the
  // caller's. Errors are those of CheckFill; ResourceExhausted if the pool has too few places.
  // Nothing is taken then.
  absl::Status BeginFill(const FillPlan& plan);

  // Blocks of exact tokens in order of position, reserved ones included: positions from a multiple
  // of S on, as many as there are. And compact segments in order of position.
  const std::vector<int32_t>& blocks() const { return blocks_; }
  const std::vector<int32_t>& slots() const { return slots_; }
  // Differs whenever blocks() or slots() differ, also between caches.
  uint64_t version() const { return version_; }

  // How many segments are due to be encoded after `more` further tokens.
  int64_t SegmentsDue(int64_t more = 0) const;
  // The block of the i-th of them.
  int32_t due_block(int64_t i) const { return blocks_[oldest_unsettled() + i]; }
  // The oldest of them is now compact in `slot`, which the cache owns from then on; or it stays
  // exact for good. `relative_errors`: as DeviceSealed has them.
  void SettleCompact(int32_t slot, std::vector<float> relative_errors);
  void SettleExact() { places_.Settle(/*compact=*/false); }
  // What was made compact since the last call, oldest first.
  std::vector<DeviceSealed> TakeSealed() { return std::exchange(sealed_, {}); }

 private:
  DeviceKvCache(std::shared_ptr<DeviceKvPool> pool, const DeviceCacheOptions& options);

  // In blocks_.
  int64_t oldest_unsettled() const { return places_.unsettled_index() / pool_->segment_tokens(); }
  void Changed();

  const std::shared_ptr<DeviceKvPool> pool_;
  const DeviceCacheOptions options_;
  int64_t length_ = 0;
  ExactPlaces places_;
  std::vector<int32_t> blocks_;  // the first, those that stay exact, those not settled
  std::vector<int32_t> slots_;
  std::vector<DeviceSealed> sealed_;
  uint64_t version_ = 0;
};

}  // namespace fourierkv
