// The CUDA backend: "cuda". Uses the first GPU that CUDA_VISIBLE_DEVICES leaves it.

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/backend_registry.h"
#include "compute/backend/compute_backend.h"
#include "compute/backend/cuda/attention_runner.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/layout_cache.h"
#include "compute/backend/cuda/segment_pipeline.h"
#include "compute/backend/cuda/staged_copy.h"
#include "compute/backend/validate_args.h"
#include "compute/base/thread_pool.h"
#include "kernels/decode_segments.h"
#include "kernels/encode_segments.h"

namespace fourierkv::cuda {
namespace {

constexpr int kDevice = 0;
// Of the device's memory, what blocks of caches may keep between calls: other programs may use the
// same GPU.
constexpr int64_t kKeptShare = 4;

ConstHostRows DenseRows(const PartLayout& layout, const uint16_t* dense, int64_t head_stride) {
  const auto size = static_cast<size_t>(layout.segment_tokens) * layout.head_dim * sizeof(*dense);
  return {reinterpret_cast<const std::byte*>(dense),
          static_cast<size_t>(head_stride) * sizeof(*dense), size,
          static_cast<size_t>(layout.kv_heads)};
}

ConstHostRows PayloadRows(const PartLayout& layout, const std::byte* payload) {
  const auto size = static_cast<size_t>(layout.payload_bytes);
  return {payload, size, size, 1};
}

HostRows Writable(const ConstHostRows& rows) {
  return {const_cast<std::byte*>(rows.data), rows.pitch, rows.width, rows.rows};
}

int64_t HeadSize(const kernels::PartView& part) {
  return static_cast<int64_t>(part.segment_tokens) * part.head_dim;
}

class Encoding final : public SegmentWork {
 public:
  explicit Encoding(KvDtype dtype) : dtype_(static_cast<kernels::ElementType>(dtype)) {}

  int64_t Workspace(const kernels::PartView& part, int32_t segments) const override {
    return kernels::EncodeSegmentsWorkspace(part, segments);
  }
  absl::Status Launch(const SegmentBatch& batch) const override {
    kernels::EncodeSegmentsParams params = {};
    params.part = *batch.part;
    params.dense = reinterpret_cast<const uint16_t* const*>(batch.in);
    params.head_stride = HeadSize(*batch.part);
    params.dtype = dtype_;
    params.payloads = reinterpret_cast<uint8_t* const*>(batch.out);
    params.payload_bytes = batch.out_bytes;
    params.reports = batch.reports;
    params.workspace = batch.workspace;
    params.segments = batch.segments;
    return CudaStatus(kernels::LaunchEncodeSegments(params, batch.stream), "encoding segments");
  }

 private:
  const kernels::ElementType dtype_;
};

class Decoding final : public SegmentWork {
 public:
  explicit Decoding(KvDtype dtype) : dtype_(static_cast<kernels::ElementType>(dtype)) {}

  int64_t Workspace(const kernels::PartView&, int32_t) const override { return 0; }
  absl::Status Launch(const SegmentBatch& batch) const override {
    kernels::DecodeSegmentsParams params = {};
    params.part = *batch.part;
    params.payloads = reinterpret_cast<const uint8_t* const*>(batch.in);
    params.dense = reinterpret_cast<uint16_t* const*>(batch.out);
    params.head_stride = HeadSize(*batch.part);
    params.dtype = dtype_;
    params.segments = batch.segments;
    return CudaStatus(kernels::LaunchDecodeSegments(params, batch.stream), "decoding segments");
  }

 private:
  const kernels::ElementType dtype_;
};

class CudaBackend final : public ComputeBackend {
 public:
  // Unavailable without a usable GPU.
  static absl::StatusOr<std::unique_ptr<ComputeBackend>> Create(int threads);

  std::string name() const override { return name_; }
  absl::Status Encode(KvDtype dtype, std::span<EncodeJob> jobs) override;
  absl::Status Decode(KvDtype dtype, std::span<const DecodeJob> jobs) override;
  absl::Status Attend(const AttentionArgs& args) override;
  ThreadPool* host_threads() override { return &pool_; }

 private:
  explicit CudaBackend(int threads) : pool_(threads) {}
  absl::Status Prepare();
  // Runs `work`, and once more with all kept memory given back if the device has too little.
  template <typename Work>
  absl::Status Run(const Work& work);

  ThreadPool pool_;
  std::string name_;
  std::mutex mutex_;     // held for a whole call
  absl::Status failed_;  // what the device died of: nothing works on it any more in this process
  std::unique_ptr<StagedUpload> upload_;
  LayoutCache layouts_;
  std::unique_ptr<SegmentPipeline> pipeline_;
  std::unique_ptr<AttentionRunner> attention_;
};

absl::StatusOr<std::unique_ptr<ComputeBackend>> CudaBackend::Create(int threads) {
  auto backend = std::unique_ptr<CudaBackend>(new CudaBackend(threads));
  if (absl::Status s = backend->Prepare(); !s.ok()) return s;
  return std::unique_ptr<ComputeBackend>(std::move(backend));
}

absl::Status CudaBackend::Prepare() {
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    return absl::UnavailableError(absl::StrCat(
        "no GPU can be used: ", error == cudaSuccess ? "there is none" : cudaGetErrorString(error),
        "; install NVIDIA's driver, check CUDA_VISIBLE_DEVICES, or choose device cpu"));
  }
  cudaDeviceProp properties = {};
  if (error = cudaGetDeviceProperties(&properties, kDevice); error != cudaSuccess) {
    return CudaStatus(error, "asking for the GPU's properties");
  }
  if (properties.major < 8) {
    return absl::UnavailableError(
        absl::StrCat("the GPU, ", properties.name, ", has compute capability ", properties.major,
                     ".", properties.minor, "; 8.0 or newer is needed; choose device cpu"));
  }
  if (error = cudaSetDevice(kDevice); error != cudaSuccess) {
    return CudaStatus(error, "choosing the GPU");
  }
  name_ = absl::StrCat("cuda (", properties.name, ")");

  absl::StatusOr<std::unique_ptr<StagedUpload>> upload = StagedUpload::Create();
  if (!upload.ok()) return upload.status();
  upload_ = *std::move(upload);
  absl::StatusOr<std::unique_ptr<SegmentPipeline>> pipeline =
      SegmentPipeline::Create(upload_.get(), &layouts_);
  if (!pipeline.ok()) return pipeline.status();
  pipeline_ = *std::move(pipeline);
  const auto kept = static_cast<int64_t>(properties.totalGlobalMem) / kKeptShare;
  absl::StatusOr<std::unique_ptr<AttentionRunner>> attention =
      AttentionRunner::Create(upload_.get(), &layouts_, kept);
  if (!attention.ok()) return attention.status();
  attention_ = *std::move(attention);
  return absl::OkStatus();
}

template <typename Work>
absl::Status CudaBackend::Run(const Work& work) {
  if (!failed_.ok()) return failed_;
  if (absl::Status s = CudaStatus(cudaSetDevice(kDevice), "choosing the GPU"); !s.ok()) return s;
  absl::Status status;
  for (int attempt = 0; attempt < 2; ++attempt) {
    layouts_.BeginCall();
    status = work();
    if (status.ok()) return status;
    // Copies from or to the caller's memory may be under way.
    if (const cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess) {
      failed_ = absl::InternalError(
          absl::StrCat("the GPU failed and needs a new process: ", status.message(), "; ",
                       cudaGetErrorString(error)));
      return failed_;
    }
    if (!absl::IsResourceExhausted(status)) return status;
    pipeline_->Clear();
    attention_->Clear();
    layouts_.Clear();
  }
  return status;
}

absl::Status CudaBackend::Encode(KvDtype dtype, std::span<EncodeJob> jobs) {
  if (absl::Status s = ValidateEncode(dtype, jobs); !s.ok()) return s;
  std::vector<SegmentJob> segments;
  for (const EncodeJob& job : jobs) {
    segments.push_back({job.layout, DenseRows(*job.layout, job.dense, job.head_stride),
                        Writable(PayloadRows(*job.layout, job.payload))});
  }
  std::vector<kernels::EncodeReport> reports;
  std::lock_guard lock(mutex_);
  absl::Status s = Run([&] { return pipeline_->Run(segments, Encoding(dtype), &reports); });
  if (!s.ok()) return s;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (reports[i].refused != 0) return RefusedValue(jobs[i], reports[i].head, dtype);
    jobs[i].relative_error = reports[i].relative_error;
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Decode(KvDtype dtype, std::span<const DecodeJob> jobs) {
  if (absl::Status s = ValidateDecode(dtype, jobs); !s.ok()) return s;
  std::vector<SegmentJob> segments;
  for (const DecodeJob& job : jobs) {
    segments.push_back({job.layout, PayloadRows(*job.layout, job.payload),
                        Writable(DenseRows(*job.layout, job.dense, job.head_stride))});
  }
  std::lock_guard lock(mutex_);
  return Run([&] { return pipeline_->Run(segments, Decoding(dtype), nullptr); });
}

absl::Status CudaBackend::Attend(const AttentionArgs& args) {
  if (absl::Status s = ValidateAttention(args); !s.ok()) return s;
  std::lock_guard lock(mutex_);
  return Run([&] { return attention_->Attend(args); });
}

const BackendRegistration kRegistration("cuda", &CudaBackend::Create);

}  // namespace
}  // namespace fourierkv::cuda
