#include "kv_service/core/removal_history.h"

#include <algorithm>

namespace fourierkv {

RemovalHistory::RemovalHistory(int64_t capacity, SegmentObserver* next)
    : capacity_(static_cast<size_t>(std::max<int64_t>(capacity, 1))), next_(next) {}

std::optional<RemovalHistory::Removal> RemovalHistory::Find(const BlockKey& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = positions_.find(key);
  if (it == positions_.end()) return std::nullopt;
  return ring_[it->second];
}

absl::Time RemovalHistory::reaches_back_to() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return forgotten_until_;
}

void RemovalHistory::Held(const SegmentEntry& entry) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    positions_.erase(entry.key);
  }
  if (next_ != nullptr) next_->Held(entry);
}

void RemovalHistory::Gone(const SegmentEntry& entry, RemovalReason reason) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const Removal removal{entry.key, absl::Now(), reason};
    if (ring_.size() < capacity_) {
      positions_[entry.key] = ring_.size();
      ring_.push_back(removal);
    } else {
      Removal& old = ring_[oldest_];
      const auto it = positions_.find(old.key);
      if (it != positions_.end() && it->second == oldest_) positions_.erase(it);
      forgotten_until_ = old.when;
      old = removal;
      positions_[entry.key] = oldest_;
      oldest_ = (oldest_ + 1) % capacity_;
    }
  }
  if (next_ != nullptr) next_->Gone(entry, reason);
}

}  // namespace fourierkv
