// Lets one thread compute on layers of a cache while another still fills the layers behind them.

#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace fourierkv {

// One gate per layer, all open at first. Thread safe. What a thread wrote before Open(layer) is
// visible to every thread whose Wait(layer) has returned OK.
class LayerGate {
 public:
  explicit LayerGate(int layers) : open_(layers, true) {}

  // Closes every layer until it is opened, or until `deadline`.
  void CloseAll(absl::Time deadline);
  void Open(int layer);
  // Every present and later Wait on a closed layer returns `status`. The first failure stands.
  void Fail(absl::Status status);

  bool is_open(int layer) const;

  // OK once `layer` is open; what Fail was given; DeadlineExceeded.
  absl::Status Wait(int layer) const;

 private:
  mutable std::mutex mutex_;  // guards everything below
  mutable std::condition_variable changed_;
  std::vector<bool> open_;
  absl::Status failure_;
  absl::Time deadline_ = absl::InfiniteFuture();
};

}  // namespace fourierkv
