// The memory of one blob, charged to a budget for as long as anybody holds it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kv_service/core/memory_budget.h"

namespace fourierkv {

// What a buffer is charged beside its bytes, for the bookkeeping around it.
inline constexpr int64_t kBufferOverheadBytes = 128;

// Uninitialised bytes aligned to 64. Charged to its budget until destroyed, so an evicted blob
// counts until its last reader lets go. Not thread safe while written; immutable afterwards.
class BlobBuffer {
 public:
  // Reserves before it allocates. ResourceExhausted if the budget has no room.
  static absl::StatusOr<std::shared_ptr<BlobBuffer>> Allocate(MemoryBudget& budget, int64_t bytes);
  ~BlobBuffer();
  BlobBuffer(const BlobBuffer&) = delete;
  BlobBuffer& operator=(const BlobBuffer&) = delete;

  std::span<std::byte> bytes() { return {data_, size_}; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  int64_t size() const { return static_cast<int64_t>(size_); }

 private:
  BlobBuffer(MemoryReservation reservation, std::byte* data, size_t size)
      : reservation_(std::move(reservation)), data_(data), size_(size) {}

  MemoryReservation reservation_;
  std::byte* data_;
  size_t size_;
};

using BlobPtr = std::shared_ptr<const BlobBuffer>;

}  // namespace fourierkv
