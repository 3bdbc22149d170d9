// When to try again what keeps failing.

#pragma once

#include <mutex>

#include "absl/time/time.h"

namespace fourierkv {

struct CircuitBreakerOptions {
  int failures_to_open = 1;  // in a row
  // How long nothing is tried after it opened; doubled after each further failure up to the
  // maximum, and jittered to between half and all of that, so that clients do not knock in step.
  absl::Duration first_pause = absl::Milliseconds(100);
  absl::Duration max_pause = absl::Seconds(5);
};

// Closed: everything may be tried. Open: nothing. After the pause one attempt may be made (half
// open): its success closes, its failure makes the next pause longer. Thread safe.
class CircuitBreaker {
 public:
  explicit CircuitBreaker(const CircuitBreakerOptions& options) : options_(options) {}

  // Whether the caller may try now. Of an open breaker only one caller gets leave per pause, also
  // if that one never reports back.
  bool Allow(absl::Time now);

  // True if the breaker was open and is closed now.
  bool Succeed();
  // True if the breaker was closed and is open now.
  bool Fail(absl::Time now);

  bool open() const;

 private:
  absl::Time AfterPauseLocked(absl::Time now) const;

  const CircuitBreakerOptions options_;
  mutable std::mutex mutex_;  // guards what follows
  int failures_ = 0;          // in a row
  bool open_ = false;
  bool probing_ = false;  // leave was given since it opened
  absl::Time retry_at_;   // of an open breaker
};

}  // namespace fourierkv
