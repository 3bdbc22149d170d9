#include "kv_service/tiers/redis_refresher.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxWishes = 16384;
constexpr size_t kMaxRemembered = 262144;
constexpr size_t kBatch = 64;
constexpr absl::Duration kPatience = absl::Seconds(2);

}  // namespace

RedisRefresher::RedisRefresher(RedisRecords* records, absl::Duration ttl)
    : records_(records), ttl_(ttl), thread_([this] { Run(); }) {}

RedisRefresher::~RedisRefresher() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void RedisRefresher::Add(std::span<const BlockKey> keys, absl::Time until) {
  const absl::Time now = absl::Now();
  bool added = false;
  {
    const std::lock_guard lock(mutex_);
    if (lives_.size() > kMaxRemembered) lives_.clear();
    for (const BlockKey& key : keys) {
      absl::Time& lives = lives_[key];
      const bool enough = until <= lives && now + 0.75 * ttl_ < lives;
      if (enough || wishes_.size() >= kMaxWishes) continue;
      // A little more than is asked for, so that not each of many leases is asked for by itself.
      lives = std::max(now + ttl_, until + 0.25 * ttl_);
      wishes_.push_back({key, lives});
      added = true;
    }
  }
  if (added) changed_.notify_all();
}

void RedisRefresher::Run() {
  for (;;) {
    std::vector<Wish> batch;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !wishes_.empty(); });
      if (stopping_) return;
      const size_t n = std::min(wishes_.size(), kBatch);
      batch.assign(wishes_.end() - static_cast<ptrdiff_t>(n), wishes_.end());
      wishes_.resize(wishes_.size() - n);
    }
    Refresh(batch);
  }
}

void RedisRefresher::Refresh(std::span<const Wish> wishes) {
  const absl::Time deadline = absl::Now() + kPatience;
  std::vector<RedisRecordName> names;
  for (const Wish& wish : wishes) {
    for (const SegmentForm form : kHeldForms) names.push_back({wish.key, form});
  }
  const auto stored = records_->ReadManifests(names, deadline);
  for (size_t i = 0; i < names.size(); ++i) {
    if (!stored[i].ok() || !stored[i]->manifest.has_value()) continue;
    const absl::Time until = wishes[i / std::size(kHeldForms)].until;
    // What is gone in part is found when it is loaded.
    (void)records_->Refresh(names[i], stored[i]->manifest->place, deadline, until - absl::Now());
  }
}

}  // namespace fourierkv
