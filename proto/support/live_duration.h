// A setting that changes while others read it.

#pragma once

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

namespace fourierkv {

// Nanoseconds exactly, up to 292 years. Thread safe.
class LiveDuration {
 public:
  explicit LiveDuration(absl::Duration value) { Set(value); }
  void Set(absl::Duration value) { nanoseconds_ = absl::ToInt64Nanoseconds(value); }
  absl::Duration Get() const { return absl::Nanoseconds(nanoseconds_.load()); }

 private:
  std::atomic<int64_t> nanoseconds_;
};

}  // namespace fourierkv
