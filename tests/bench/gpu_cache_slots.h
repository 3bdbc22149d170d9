// Caches of any size in device memory, made of a small pool.

#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "tests/bench/gpu_cache_pool.h"

namespace fourierkv {

// Device memory in which slot i holds a copy of item i % pool size: distinct memory however small
// the pool, so that nothing but the caches' real size decides what stays in the L2.
class CacheSlots {
 public:
  CacheSlots() = default;
  // ResourceExhausted or what the runtime reports.
  static absl::StatusOr<CacheSlots> Create(const CachePool& pool, int64_t slots);

  int64_t slots() const { return slots_; }
  const std::byte* k(int64_t slot) const { return k_.data() + slot * k_bytes_; }
  const std::byte* v(int64_t slot) const { return v_.data() + slot * v_bytes_; }

 private:
  int64_t slots_ = 0;
  size_t k_bytes_ = 0;
  size_t v_bytes_ = 0;
  DeviceBuffer k_;
  DeviceBuffer v_;
};

}  // namespace fourierkv
