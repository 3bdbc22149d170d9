// How long somebody waits for work to be done.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace fourierkv {

// Whether a call has ended before its work did. Thread safe.
class CallEnd {
 public:
  // Nobody waits any more: the caller gave up, or `late`, was told that its deadline has passed.
  // The first time counts.
  void Come(absl::Time now, bool late = false) {
    int64_t not_yet = kNotYet;
    if (late) late_.store(true);  // seen by whoever sees the time
    at_.compare_exchange_strong(not_yet, absl::ToUnixNanos(now));
  }
  bool came() const { return at_.load(std::memory_order_relaxed) != kNotYet; }
  // Whether it came because the caller gave up.
  bool cancelled() const { return at_.load() != kNotYet && !late_.load(); }
  // The far future until it came.
  absl::Time at() const {
    const int64_t at = at_.load(std::memory_order_relaxed);
    return at == kNotYet ? absl::InfiniteFuture() : absl::FromUnixNanos(at);
  }

 private:
  static constexpr int64_t kNotYet = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> at_{kNotYet};
  std::atomic<bool> late_{false};
};

// Whether work was not done because nobody waited any longer.
inline bool IsGivenUp(const absl::Status& status) {
  return absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
}

// Until a time, and of work for a call no longer than that lasts. Whoever takes one returns soon
// after it is over: loops ask it every few milliseconds of work. A value; thread safe.
class Patience {
 public:
  // A time alone is a patience.
  Patience(absl::Time deadline)  // NOLINT(google-explicit-constructor)
      : deadline_(deadline) {}
  Patience(absl::Time deadline, std::shared_ptr<const CallEnd> call)
      : deadline_(deadline), call_(std::move(call)) {}

  // The same, but ending at `deadline` at the latest.
  Patience Until(absl::Time deadline) const { return {std::min(deadline, deadline_), call_}; }

  absl::Time deadline() const { return deadline_; }
  // Whether it may be over before its deadline.
  bool of_call() const { return call_ != nullptr; }
  // When it is over, as far as that is known.
  absl::Time end() const { return call_ != nullptr ? std::min(deadline_, call_->at()) : deadline_; }
  bool over() const {
    return (call_ != nullptr && call_->came()) ||
           (deadline_ != absl::InfiniteFuture() && absl::Now() >= deadline_);
  }
  // Whether the caller gave up before the deadline.
  bool cancelled() const {
    return call_ != nullptr && call_->cancelled() && call_->at() < deadline_;
  }
  // OK while it is not over; then Cancelled if the caller gave up, else DeadlineExceeded.
  absl::Status Check() const { return over() ? Over() : absl::OkStatus(); }
  // What work that was not done before it was over comes to.
  absl::Status Over() const {
    return cancelled() ? absl::CancelledError("the call was cancelled")
                       : absl::DeadlineExceededError("it was not done in time");
  }

 private:
  absl::Time deadline_;
  std::shared_ptr<const CallEnd> call_;
};

}  // namespace fourierkv
