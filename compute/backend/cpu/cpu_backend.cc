#include "compute/backend/cpu/cpu_backend.h"

#include <cblas.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/kernels.h"
#include "compute/backend/cpu/rotation_kernels.h"
#include "compute/backend/validate_args.h"

namespace fourierkv {
namespace cpu {
namespace {

class CpuBackend final : public ComputeBackend {
 public:
  explicit CpuBackend(int threads) : workers_(threads) {}

  std::string name() const override {
    const int threads = workers_.pool.threads();
    return absl::StrCat("cpu (", TargetName(), ", ", threads,
                        threads == 1 ? " thread)" : " threads)");
  }

  absl::Status Encode(KvDtype dtype, std::span<EncodeJob> jobs) override;
  absl::Status Decode(KvDtype dtype, std::span<const DecodeJob> jobs) override;
  absl::Status Attend(const AttentionArgs& args) override;
  ThreadPool* host_threads() override { return &workers_.pool; }

 private:
  // Heads of all jobs, in order: a task of the parallel loops is one head of one job.
  struct HeadTask {
    size_t job;
    int head;
  };
  template <typename Job>
  static std::vector<HeadTask> ListHeads(std::span<Job> jobs) {
    std::vector<HeadTask> tasks;
    for (size_t j = 0; j < jobs.size(); ++j) {
      for (int h = 0; h < jobs[j].layout->kv_heads; ++h) tasks.push_back({j, h});
    }
    return tasks;
  }

  std::mutex mutex_;  // held for a whole call
  Workers workers_;
};

absl::Status CpuBackend::Encode(KvDtype dtype, std::span<EncodeJob> jobs) {
  if (absl::Status s = ValidateEncode(dtype, jobs); !s.ok()) return s;
  std::lock_guard lock(mutex_);
  const std::vector<HeadTask> tasks = ListHeads(jobs);
  std::vector<EncodeTotals> totals(tasks.size());
  workers_.pool.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const EncodeJob& job = jobs[tasks[i].job];
    totals[i] =
        EncodeHead(*job.layout, tasks[i].head, dtype, job.dense + tasks[i].head * job.head_stride,
                   job.payload, workers_.Scratch(thread));
  });
  size_t i = 0;
  for (EncodeJob& job : jobs) {
    double energy = 0;
    double error = 0;
    for (int h = 0; h < job.layout->kv_heads; ++h, ++i) {
      if (!totals[i].valid) return RefusedValue(job, h, dtype);
      energy += totals[i].energy;
      error += totals[i].error;
    }
    job.relative_error = energy > 0 ? static_cast<float>(std::sqrt(error / energy)) : 0;
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::Decode(KvDtype dtype, std::span<const DecodeJob> jobs) {
  if (absl::Status s = ValidateDecode(dtype, jobs); !s.ok()) return s;
  std::lock_guard lock(mutex_);
  const std::vector<HeadTask> tasks = ListHeads(jobs);
  workers_.pool.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const DecodeJob& job = jobs[tasks[i].job];
    const PartLayout& layout = *job.layout;
    ScratchArena& arena = workers_.Scratch(thread);
    const int64_t stride = (layout.head_dim + 15) / 16 * 16;
    const float* rows = DecodeHeadRotatedBack(layout, tasks[i].head, job.payload, stride, arena);
    uint16_t* dense = job.dense + tasks[i].head * job.head_stride;
    for (int t = 0; t < layout.segment_tokens; ++t) {
      FloatsToKv(rows + t * stride, layout.head_dim, dtype,
                 dense + static_cast<int64_t>(t) * layout.head_dim);
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::Attend(const AttentionArgs& args) {
  if (absl::Status s = ValidateAttention(args); !s.ok()) return s;
  std::lock_guard lock(mutex_);
  if (args.query_tokens == 1) {
    AttendSingleQuery(args, workers_);
  } else {
    AttendChunk(args, workers_);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace cpu

std::unique_ptr<ComputeBackend> CreateCpuBackend(int threads) {
  // Parallelism is the pool's: from here on the process's BLAS calls run on their caller's thread.
  openblas_set_num_threads(1);
  return std::make_unique<cpu::CpuBackend>(threads);
}

}  // namespace fourierkv
