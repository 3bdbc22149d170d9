// Copies between any host memory and the device through pinned memory in two halves: while one is
// transferred the other is filled or emptied.

#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/host_rows.h"
#include "compute/backend/cuda/pinned_buffer.h"
#include "compute/backend/cuda/stream.h"

namespace fourierkv::cuda {

// To the device, on a stream of its own. One thread at a time.
class StagedUpload {
 public:
  static absl::StatusOr<std::unique_ptr<StagedUpload>> Create();

  // Enqueues the copying of `from` to rows that start every to_pitch bytes. Pinned memory is read
  // when the copy runs, so it must not change until then; other memory is free on return.
  absl::Status Copy(const ConstHostRows& from, std::byte* to, size_t to_pitch);
  absl::Status Copy(const void* from, size_t bytes, void* to);

  // What is enqueued on `stream` from now on runs after the copies so far.
  absl::Status Delay(cudaStream_t stream);

  cudaStream_t stream() const { return stream_.get(); }

 private:
  struct Half {
    std::byte* data = nullptr;
    Event copied;  // recorded when the half was full
  };

  StagedUpload() = default;
  // Room for `bytes`, at most kHalfBytes, in the half that is being filled.
  absl::StatusOr<std::byte*> Room(size_t bytes);
  absl::Status CopyStaged(const ConstHostRows& from, std::byte* to, size_t to_pitch);

  Stream stream_;
  Event all_copied_;
  PinnedBuffer pinned_;
  std::array<Half, 2> halves_;
  int filling_ = 0;
  size_t used_ = 0;  // of that half
};

// From the device. One thread at a time.
class StagedDownload {
 public:
  static absl::StatusOr<std::unique_ptr<StagedDownload>> Create();

  // What `stream` has left at `from` when everything enqueued so far has run. Returns when it is
  // there.
  absl::Status Copy(const void* from, size_t bytes, void* to, cudaStream_t stream);

 private:
  StagedDownload() = default;

  PinnedBuffer pinned_;
  std::array<Event, 2> copied_;
};

}  // namespace fourierkv::cuda
