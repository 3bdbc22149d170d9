#include "compute/cache/cuda/device_kv_cache.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/cache/compact_kv_cache.h"

namespace fourierkv {

absl::StatusOr<std::unique_ptr<DeviceKvCache>> DeviceKvCache::Create(
    std::shared_ptr<DeviceKvPool> pool, const DeviceCacheOptions& options) {
  const absl::Status status =
      CheckCompactLimits(options.recent_window, options.max_tokens, options.max_relative_error);
  if (!status.ok()) return status;
  return std::unique_ptr<DeviceKvCache>(new DeviceKvCache(std::move(pool), options));
}

DeviceKvCache::DeviceKvCache(std::shared_ptr<DeviceKvPool> pool, const DeviceCacheOptions& options)
    : pool_(std::move(pool)), options_(options), places_(pool_->segment_tokens()) {
  Changed();
}

DeviceKvCache::~DeviceKvCache() {
  for (const int32_t block : blocks_) pool_->GiveBackBlock(block);
  for (const int32_t slot : slots_) pool_->GiveBackSlot(slot);
}

void DeviceKvCache::Changed() {
  static std::atomic<uint64_t> changes = 0;
  version_ = ++changes;
}

CacheStats DeviceKvCache::stats() const {
  const KvGeometry& g = pool_->geometry();
  const int64_t compact = places_.compact_segments();
  return {.exact_tokens = exact_tokens(),
          .compact_segments = compact,
          .exact_inside = static_cast<int64_t>(places_.exact_inside().size()),
          .exact_bytes = g.DenseBytes(exact_tokens()),
          .compact_bytes = compact * pool_->profile().layout().SegmentPayloadBytes(),
          .dense_bytes = g.DenseBytes(length_)};
}

int64_t DeviceKvCache::bytes() const {
  return static_cast<int64_t>(blocks_.size()) * pool_->block_bytes() +
         static_cast<int64_t>(slots_.size()) * pool_->slot_bytes();
}

absl::Status DeviceKvCache::CheckRoom(int64_t tokens) const {
  if (tokens >= 0 && tokens <= options_.max_tokens - length_) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the cache holds ", length_,
                                                   " tokens and cannot take ", tokens,
                                                   " more: its capacity is ", options_.max_tokens));
}

absl::Status DeviceKvCache::Reserve(int64_t tokens) {
  if (absl::Status s = CheckRoom(tokens); !s.ok()) return s;
  const int64_t segment = pool_->segment_tokens();
  while (static_cast<int64_t>(blocks_.size()) * segment < exact_tokens() + tokens) {
    absl::StatusOr<int32_t> block = pool_->TakeBlock();
    if (!block.ok()) return block.status();
    blocks_.push_back(*block);
    Changed();
  }
  return absl::OkStatus();
}

absl::Status DeviceKvCache::Advance(int64_t tokens) {
  const int64_t room =
      static_cast<int64_t>(blocks_.size()) * pool_->segment_tokens() - exact_tokens();
  if (tokens < 1 || tokens > room) {
    return absl::FailedPreconditionError(
        absl::StrCat("Advance by ", tokens, " tokens, but places for ", room, " are reserved"));
  }
  length_ += tokens;
  return absl::OkStatus();
}

int64_t DeviceKvCache::SegmentsDue(int64_t more) const {
  if (!options_.compact) return 0;
  const int64_t wanted = CompactKvCache::CompactSegments(length_ + more, pool_->segment_tokens(),
                                                         options_.recent_window);
  return std::max<int64_t>(0, wanted - places_.settled());
}

absl::Status DeviceKvCache::CheckFill(const FillPlan& plan) const {
  if (length_ != 0) return absl::FailedPreconditionError("only an empty cache can be filled");
  return CheckFillPlan(plan, options_.compact ? pool_->segment_tokens() : 0, options_.max_tokens);
}

KvPlaces DeviceKvCache::PlacesOf(const FillPlan& plan) const {
  const int64_t segment = pool_->segment_tokens();
  const int64_t slots = plan.compact_segments - static_cast<int64_t>(plan.exact_inside.size());
  return {.blocks = (plan.length - slots * segment + segment - 1) / segment, .slots = slots};
}

absl::Status DeviceKvCache::BeginFill(const FillPlan& plan) {
  if (absl::Status s = CheckFill(plan); !s.ok()) return s;
  const auto [blocks, slots] = PlacesOf(plan);
  const int64_t more_blocks = blocks - static_cast<int64_t>(blocks_.size());
  if (more_blocks > pool_->free_blocks() || slots > pool_->free_slots()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a fill of ", plan.length, " tokens needs ", blocks, " blocks and ", slots,
                     " slots; of the KV pool's, ", pool_->free_blocks(), " and ",
                     pool_->free_slots(), " are free"));
  }
  for (int64_t i = 0; i < more_blocks; ++i) blocks_.push_back(*pool_->TakeBlock());
  for (int64_t i = 0; i < slots; ++i) slots_.push_back(*pool_->TakeSlot());
  length_ = plan.length;
  places_ = ExactPlaces(pool_->segment_tokens(), plan);
  Changed();
  return absl::OkStatus();
}

void DeviceKvCache::SettleCompact(int32_t slot, std::vector<float> relative_errors) {
  sealed_.push_back({places_.settled() + 1, slot, std::move(relative_errors)});
  const auto oldest = blocks_.begin() + oldest_unsettled();
  pool_->GiveBackBlock(*oldest);
  blocks_.erase(oldest);
  slots_.push_back(slot);
  places_.Settle(/*compact=*/true);
  Changed();
}

}  // namespace fourierkv
