#include "kv_service/redis/circuit_breaker.h"

#include <algorithm>

#include "absl/random/random.h"

namespace fourierkv {

bool CircuitBreaker::Allow(absl::Time now) {
  const std::lock_guard lock(mutex_);
  if (!open_) return true;
  if (now < retry_at_) return false;
  probing_ = true;
  retry_at_ = AfterPauseLocked(now);
  return true;
}

bool CircuitBreaker::Succeed() {
  const std::lock_guard lock(mutex_);
  failures_ = 0;
  const bool was_open = open_;
  open_ = false;
  return was_open;
}

bool CircuitBreaker::Fail(absl::Time now) {
  const std::lock_guard lock(mutex_);
  // Attempts that began before it opened fail too, and say nothing new.
  if (open_ && !probing_) return false;
  ++failures_;
  if (failures_ < options_.failures_to_open) return false;
  const bool was_open = open_;
  open_ = true;
  probing_ = false;
  retry_at_ = AfterPauseLocked(now);
  return !was_open;
}

bool CircuitBreaker::open() const {
  const std::lock_guard lock(mutex_);
  return open_;
}

absl::Time CircuitBreaker::AfterPauseLocked(absl::Time now) const {
  absl::Duration pause = options_.first_pause;
  for (int i = options_.failures_to_open; i < failures_ && pause < options_.max_pause; ++i) {
    pause *= 2;
  }
  pause = std::min(pause, options_.max_pause);
  thread_local absl::BitGen random;
  return now + pause * absl::Uniform(random, 0.5, 1.0);
}

}  // namespace fourierkv
