// Host memory that the GPU's copy engines read and write by themselves.

#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "compute/backend/cuda/host_rows.h"

namespace fourierkv::cuda {

// Empty at first. Not to be resized while copies from or to it are under way.
class PinnedBuffer {
 public:
  // Makes room for `size` bytes; what was there is lost if there was less. ResourceExhausted.
  absl::Status Reserve(size_t size);

  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };

  size_t size_ = 0;
  std::unique_ptr<std::byte[], Free> data_;
};

// Whether the runtime can copy the rows at once and without help: they are pinned, by cudaHostAlloc
// or cudaHostRegister, and not too far apart.
bool IsPinned(const ConstHostRows& rows);

}  // namespace fourierkv::cuda
