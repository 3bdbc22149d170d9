#include "compute/cache/layer_gate.h"

#include "absl/strings/str_cat.h"

namespace fourierkv {

void LayerGate::CloseAll(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  open_.assign(open_.size(), false);
  failure_ = absl::OkStatus();
  deadline_ = deadline;
}

void LayerGate::Open(int layer) {
  absl::MutexLock lock(&mutex_);
  open_[layer] = true;
}

void LayerGate::Fail(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  if (failure_.ok()) failure_ = std::move(status);
}

bool LayerGate::is_open(int layer) const {
  absl::MutexLock lock(&mutex_);
  return open_[layer];
}

absl::Status LayerGate::Wait(int layer) const {
  absl::MutexLock lock(&mutex_);
  const auto decided = [this, layer]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return open_[layer] || !failure_.ok();
  };
  mutex_.AwaitWithDeadline(absl::Condition(&decided), deadline_);
  if (open_[layer]) return absl::OkStatus();
  if (!failure_.ok()) return failure_;
  return absl::DeadlineExceededError(
      absl::StrCat("layer ", layer, " of the cache was not filled in time"));
}

}  // namespace fourierkv
