// Lets one thread compute on layers of a cache while another still fills the layers behind them.

#pragma once

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fourierkv {

// One gate per layer, all open at first. Thread safe. What a thread wrote before Open(layer) is
// visible to every thread whose Wait(layer) has returned OK.
class LayerGate {
 public:
  explicit LayerGate(int layers) : open_(layers, true) {}

  // Closes every layer until it is opened, or until `deadline`.
  void CloseAll(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  void Open(int layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // Every present and later Wait on a closed layer returns `status`. The first failure stands.
  void Fail(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  bool is_open(int layer) const ABSL_LOCKS_EXCLUDED(mutex_);

  // OK once `layer` is open; what Fail was given; DeadlineExceeded.
  absl::Status Wait(int layer) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  std::vector<bool> open_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Time deadline_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
};

}  // namespace fourierkv
