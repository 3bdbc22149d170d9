#include "tests/bench/gpu_timing.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv {
namespace {

constexpr double kRunMicroseconds = 2000;  // of a run at least: the events' own cost vanishes in it
constexpr double kTotalMicroseconds = 3e5;  // of all replays
constexpr int kMostLaunches = 256;
constexpr int kFewestReplays = 5;

template <typename T, cudaError_t (*Destroy)(T)>
struct Destroyer {
  void operator()(T handle) const { Destroy(handle); }
};
using Event =
    std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroyer<cudaEvent_t, cudaEventDestroy>>;
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>,
                               Destroyer<cudaStream_t, cudaStreamDestroy>>;
using Graph =
    std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, Destroyer<cudaGraph_t, cudaGraphDestroy>>;
using GraphExec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>,
                                  Destroyer<cudaGraphExec_t, cudaGraphExecDestroy>>;

absl::StatusOr<Event> MakeEvent() {
  cudaEvent_t event = nullptr;
  const cudaError_t error = cudaEventCreate(&event);
  if (error != cudaSuccess) return CudaStatus(error, "creating an event");
  return Event(event);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// The median of `runs` timings of `work`, which makes `launches` launches.
absl::StatusOr<double> MedianOfRuns(cudaStream_t stream, int runs, int launches,
                                    const std::function<cudaError_t(cudaStream_t)>& work) {
  std::vector<double> times;
  for (int r = 0; r < runs; ++r) {
    const absl::StatusOr<double> time = Elapsed(stream, work);
    if (!time.ok()) return time.status();
    times.push_back(*time / launches);
  }
  return Median(times);
}

absl::StatusOr<GraphExec> Capture(cudaStream_t stream,
                                  const std::function<cudaError_t(cudaStream_t)>& work) {
  cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  if (error != cudaSuccess) return CudaStatus(error, "beginning a capture");
  const cudaError_t worked = work(stream);
  cudaGraph_t captured = nullptr;
  error = cudaStreamEndCapture(stream, &captured);  // also after a failure, to end the capture
  const Graph graph(captured);
  if (worked != cudaSuccess) return CudaStatus(worked, "launching inside a capture");
  if (error != cudaSuccess) return CudaStatus(error, "ending a capture");
  cudaGraphExec_t executable = nullptr;
  error = cudaGraphInstantiate(&executable, graph.get(), 0);
  if (error != cudaSuccess) return CudaStatus(error, "instantiating a graph");
  return GraphExec(executable);
}

}  // namespace

absl::StatusOr<double> Elapsed(cudaStream_t stream,
                               const std::function<cudaError_t(cudaStream_t)>& work) {
  absl::StatusOr<Event> start = MakeEvent();
  if (!start.ok()) return start.status();
  absl::StatusOr<Event> end = MakeEvent();
  if (!end.ok()) return end.status();
  cudaError_t error = cudaEventRecord(start->get(), stream);
  if (error == cudaSuccess) error = work(stream);
  if (error != cudaSuccess) return CudaStatus(error, "launching");
  error = cudaEventRecord(end->get(), stream);
  if (error == cudaSuccess) error = cudaEventSynchronize(end->get());
  float milliseconds = 0;
  if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, start->get(), end->get());
  if (error != cudaSuccess) return CudaStatus(error, "running a timed launch");
  return 1000.0 * milliseconds;
}

absl::StatusOr<LaunchTiming> TimeLaunches(const EnqueueLaunch& enqueue, int sets, int repeat) {
  cudaStream_t handle = nullptr;
  if (const cudaError_t error = cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking);
      error != cudaSuccess) {
    return CudaStatus(error, "creating a stream");
  }
  const Stream stream(handle);
  LaunchTiming timing;
  const auto launches = [&](cudaStream_t s) {
    for (int i = 0; i < timing.launches; ++i) {
      if (const cudaError_t error = enqueue(i, s); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  };

  timing.launches = 4;
  absl::StatusOr<double> run = MedianOfRuns(stream.get(), 2, timing.launches, launches);
  if (!run.ok()) return run.status();
  const double wanted = std::ceil(kRunMicroseconds / std::max(1.0, *run));
  timing.launches = std::max(sets, static_cast<int>(std::min<double>(wanted, kMostLaunches)));

  // Runs cost about the same from here on; the first is a warm-up.
  run = Elapsed(stream.get(), launches);
  if (!run.ok()) return run.status();
  timing.replays = std::clamp(static_cast<int>(kTotalMicroseconds / *run),
                              std::min(kFewestReplays, repeat), repeat);
  run = MedianOfRuns(stream.get(), std::min(timing.replays, kFewestReplays), timing.launches,
                     launches);
  if (!run.ok()) return run.status();
  timing.stream_us = *run;

  absl::StatusOr<GraphExec> graph = Capture(stream.get(), launches);
  if (!graph.ok()) return graph.status();
  const auto replay = [&](cudaStream_t s) { return cudaGraphLaunch(graph->get(), s); };
  run = Elapsed(stream.get(), replay);
  if (!run.ok()) return run.status();
  run = MedianOfRuns(stream.get(), timing.replays, timing.launches, replay);
  if (!run.ok()) return run.status();
  timing.graph_us = *run;
  return timing;
}

}  // namespace fourierkv
