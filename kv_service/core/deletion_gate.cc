#include "kv_service/core/deletion_gate.h"

#include <algorithm>
#include <vector>

namespace fourierkv {

struct DeletionGate::Deletion {
  Deletion(DeletionGate* of, std::span<const BlockKey> of_keys)
      : gate(of), keys(of_keys.begin(), of_keys.end()) {}
  ~Deletion() { gate->End(*this); }
  Deletion(const Deletion&) = delete;
  Deletion& operator=(const Deletion&) = delete;

  DeletionGate* const gate;
  const std::vector<BlockKey> keys;
};

DeletionGate::Reader::~Reader() {
  if (gate_ == nullptr) return;
  std::lock_guard<std::mutex> lock(gate_->mutex_);
  gate_->readers_.erase(gate_->readers_.find(entered_));
  gate_->ForgetLocked();
}

DeletionGate::Reader DeletionGate::Enter() {
  std::lock_guard<std::mutex> lock(mutex_);
  readers_.insert(++time_);
  return Reader(this, time_);
}

bool DeletionGate::Bring(const Reader& reader, std::span<const BlockKey> keys,
                         const std::function<void()>& bring) {
  std::lock_guard<std::mutex> lock(mutex_);
  const bool refused = std::any_of(keys.begin(), keys.end(), [&](const BlockKey& key) {
    const auto it = marks_.find(key);
    return it != marks_.end() && (it->second.running > 0 || it->second.ended > reader.entered_);
  });
  if (!refused) bring();
  return !refused;
}

std::shared_ptr<const void> DeletionGate::Begin(std::span<const BlockKey> keys) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const BlockKey& key : keys) ++marks_[key].running;
  return std::make_shared<const Deletion>(this, keys);
}

void DeletionGate::End(const Deletion& deletion) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++time_;
  for (const BlockKey& key : deletion.keys) {
    Mark& mark = marks_[key];
    --mark.running;
    mark.ended = time_;
    ended_.emplace_back(time_, key);
  }
  ForgetLocked();
}

void DeletionGate::ForgetLocked() {
  while (!ended_.empty() && (readers_.empty() || ended_.front().first < *readers_.begin())) {
    const auto it = marks_.find(ended_.front().second);
    // A later deletion of the key has its own end.
    if (it != marks_.end() && it->second.running == 0 && it->second.ended == ended_.front().first) {
      marks_.erase(it);
    }
    ended_.pop_front();
  }
}

}  // namespace fourierkv
