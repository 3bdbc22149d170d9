#include "compute/cache/layer_gate.h"

#include "absl/strings/str_cat.h"

namespace fourierkv {

void LayerGate::CloseAll(absl::Time deadline) {
  std::lock_guard lock(mutex_);
  open_.assign(open_.size(), false);
  failure_ = absl::OkStatus();
  deadline_ = deadline;
}

void LayerGate::Open(int layer) {
  std::lock_guard lock(mutex_);
  open_[layer] = true;
  changed_.notify_all();
}

void LayerGate::Fail(absl::Status status) {
  std::lock_guard lock(mutex_);
  if (failure_.ok()) failure_ = std::move(status);
  changed_.notify_all();
}

bool LayerGate::is_open(int layer) const {
  std::lock_guard lock(mutex_);
  return open_[layer];
}

absl::Status LayerGate::Wait(int layer) const {
  std::unique_lock lock(mutex_);
  const auto decided = [this, layer] { return open_[layer] || !failure_.ok(); };
  if (deadline_ == absl::InfiniteFuture()) {
    changed_.wait(lock, decided);
  } else {
    changed_.wait_until(lock, absl::ToChronoTime(deadline_), decided);
  }
  if (open_[layer]) return absl::OkStatus();
  if (!failure_.ok()) return failure_;
  return absl::DeadlineExceededError(
      absl::StrCat("layer ", layer, " of the cache was not filled in time"));
}

}  // namespace fourierkv
