// CUDA streams and events that destroy themselves.

#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace fourierkv::cuda {

// Runs beside all other streams, the default one included.
class Stream {
 public:
  static absl::StatusOr<Stream> Create();

  cudaStream_t get() const { return stream_.get(); }
  // Until everything that was enqueued has run. Says, too, what went wrong in it.
  absl::Status Wait() const;

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> stream_;
};

// A place in a stream.
class Event {
 public:
  static absl::StatusOr<Event> Create();

  // Moves it to behind what was enqueued on `stream` so far.
  absl::Status Record(cudaStream_t stream) const;
  // Until what stands before it has run. Returns at once if it was never recorded.
  absl::Status Wait() const;
  // What is enqueued on `stream` from now on runs after what stands before the event.
  absl::Status Delay(cudaStream_t stream) const;

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy> event_;
};

}  // namespace fourierkv::cuda
