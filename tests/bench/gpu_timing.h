// How long launches take on the device.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"

namespace fourierkv {

// Enqueues launch number i, which reads inputs i % sets.
using EnqueueLaunch = std::function<cudaError_t(int64_t i, cudaStream_t stream)>;

// Microseconds a launch, both medians of runs of `launches` launches one behind the other.
struct LaunchTiming {
  double graph_us = 0;   // in a captured CUDA graph, as engines decode
  double stream_us = 0;  // enqueued one by one: more if the host cannot keep up
  int launches = 0;
  int replays = 0;
};

// Warms up, then replays a graph of at least `sets` launches up to `repeat` times, fewer if that
// would take long. Statuses are the runtime's.
absl::StatusOr<LaunchTiming> TimeLaunches(const EnqueueLaunch& enqueue, int sets, int repeat);

// Microseconds of whatever `work` enqueues on `stream`.
absl::StatusOr<double> Elapsed(cudaStream_t stream,
                               const std::function<cudaError_t(cudaStream_t)>& work);

}  // namespace fourierkv
