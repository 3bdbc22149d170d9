// Device memory that frees itself.

#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace fourierkv {

// Uninitialised memory of the current device, aligned to 256 bytes at least. Movable; empty after
// being moved from. Freeing waits for the device, so buffers are made once, not per call.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : size_(std::exchange(other.size_, 0)), data_(std::move(other.data_)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    size_ = std::exchange(other.size_, 0);
    data_ = std::move(other.data_);
    return *this;
  }

  // ResourceExhausted with the size that was asked for, or what CudaStatus() makes of the error. A
  // size of 0 gives an empty buffer.
  static absl::StatusOr<DeviceBuffer> Create(size_t size);
  // A buffer with a copy of host memory, complete on return.
  static absl::StatusOr<DeviceBuffer> CopyOf(const void* host, size_t size);

  // Blocking copies of the first `size` bytes; InvalidArgument if there are fewer.
  absl::Status CopyFrom(const void* host, size_t size);
  absl::Status CopyTo(void* host, size_t size) const;

  std::byte* data() const { return data_.get(); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };

  size_t size_ = 0;
  std::unique_ptr<std::byte[], Free> data_;
};

}  // namespace fourierkv
