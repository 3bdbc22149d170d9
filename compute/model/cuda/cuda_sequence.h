// A sequence whose cache lives in the memory of a GPU.

#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/idle_list.h"
#include "compute/backend/cuda/staged_copy.h"
#include "compute/base/fair_mutex.h"
#include "compute/cache/cuda/device_fill.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/cuda/device_kv_pool.h"
#include "compute/cache/kv_budget.h"
#include "compute/model/cuda/cuda_llama_runner.h"
#include "compute/model/model_engine.h"
#include "compute/model/step_batcher.h"

namespace fourierkv {

// One sequence's part of a step.
struct CudaStepRow {
  DecodeRow row;
  bool with_logits = false;          // asked for
  kernels::TokenChoice choice = {};  // the likeliest token
  std::vector<float> logits = {};    // [vocab], if asked for
};

// What the sequences of an engine share.
struct CudaEngineState {
  // `max_batch`: the runner's.
  CudaEngineState(std::shared_ptr<DeviceKvPool> kv_pool,
                  std::unique_ptr<CudaLlamaRunner> llama_runner, int max_batch);

  // The runner, the pool and the books of all caches belong to who has this, a short while each
  // time: a chunk of a prompt, a step.
  FairMutex turns;
  const std::shared_ptr<DeviceKvPool> pool;
  const std::unique_ptr<CudaLlamaRunner> runner;
  KvBudget budget;
  StepBatcher<CudaStepRow> batcher;
  cuda::IdleList<cuda::StagedUpload> uploads;
  cuda::IdleList<cuda::StagedDownload> downloads;
};

class CudaSequence final : public ModelSequence {
 public:
  // Errors are those of ModelEngine::NewSequence.
  static absl::StatusOr<std::unique_ptr<CudaSequence>> Create(
      std::shared_ptr<CudaEngineState> engine, const SequenceOptions& options);
  ~CudaSequence() override;

  int64_t length() const override { return cache_->length(); }
  CacheStats stats() const override { return cache_->stats(); }
  FillTarget* fill_target() override { return &*fill_; }
  absl::Status Prefill(std::span<const int32_t> tokens, std::vector<float>* logits,
                       const PromptOptions& options) override;
  absl::StatusOr<SampledToken> Step(int32_t token, Sampler& sampler) override;
  absl::Status ReadExact(
      int64_t first, int64_t tokens,
      const std::function<absl::Status(ComputedPart part)>& on_part) const override;
  // Brought to the host here; until then they are on the device only.
  absl::StatusOr<std::vector<SealedSegment>> TakeSealed() override;

 private:
  using Download = cuda::IdleList<cuda::StagedDownload>::Borrowed;

  explicit CudaSequence(std::shared_ptr<CudaEngineState> engine) : engine_(std::move(engine)) {}

  int64_t segment_tokens() const { return engine_->pool->segment_tokens(); }
  absl::Status BeginFill(const FillPlan& plan);
  // Encodes what is due.
  absl::Status Seal();
  absl::StatusOr<ComputedPart> Fetch(cuda::StagedDownload& download, int layer, int64_t first,
                                     int64_t tokens, Part part) const;
  absl::StatusOr<SealedSegment> Fetch(cuda::StagedDownload& download,
                                      const DeviceSealed& sealed) const;

  const std::shared_ptr<CudaEngineState> engine_;
  std::unique_ptr<KvBudget::Claim> claim_;
  std::unique_ptr<DeviceKvCache> cache_;
  std::optional<DeviceFill> fill_;
};

}  // namespace fourierkv
