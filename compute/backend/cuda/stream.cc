#include "compute/backend/cuda/stream.h"

#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv::cuda {

absl::StatusOr<Stream> Stream::Create() {
  cudaStream_t made = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  if (error != cudaSuccess) return CudaStatus(error, "creating a CUDA stream");
  Stream stream;
  stream.stream_.reset(made);
  return stream;
}

absl::Status Stream::Wait() const {
  return CudaStatus(cudaStreamSynchronize(get()), "waiting for the GPU");
}

absl::StatusOr<Event> Event::Create() {
  cudaEvent_t made = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
  if (error != cudaSuccess) return CudaStatus(error, "creating a CUDA event");
  Event event;
  event.event_.reset(made);
  return event;
}

absl::Status Event::Record(cudaStream_t stream) const {
  return CudaStatus(cudaEventRecord(event_.get(), stream), "recording a CUDA event");
}

absl::Status Event::Wait() const {
  return CudaStatus(cudaEventSynchronize(event_.get()), "waiting for the GPU");
}

absl::Status Event::Delay(cudaStream_t stream) const {
  return CudaStatus(cudaStreamWaitEvent(stream, event_.get(), 0), "ordering CUDA streams");
}

}  // namespace fourierkv::cuda
