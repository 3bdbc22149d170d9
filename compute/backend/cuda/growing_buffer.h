// Device memory for whatever a call needs, kept for the next one.

#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"

namespace fourierkv::cuda {

// Empty at first.
class GrowingBuffer {
 public:
  // Makes room for `size` bytes. What was there is lost if it had less, so nothing may be running
  // that uses it. Gives whether the memory is new.
  absl::StatusOr<bool> Reserve(size_t size) {
    if (size <= buffer_.size()) return false;
    const size_t before = buffer_.size();
    buffer_ = DeviceBuffer();
    absl::StatusOr<DeviceBuffer> grown = DeviceBuffer::Create(std::max(size, before + before / 2));
    if (!grown.ok()) grown = DeviceBuffer::Create(size);
    if (!grown.ok()) return grown.status();
    buffer_ = *std::move(grown);
    return true;
  }
  // Gives the memory back.
  void Clear() { buffer_ = DeviceBuffer(); }

  std::byte* data() const { return buffer_.data(); }
  size_t size() const { return buffer_.size(); }

 private:
  DeviceBuffer buffer_;
};

}  // namespace fourierkv::cuda
