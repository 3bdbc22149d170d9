// The engine of a GPU: weights, caches and passes in its memory.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/base/structured_log.h"
#include "compute/cache/cuda/device_kv_pool.h"
#include "compute/cache/cuda/device_profile.h"
#include "compute/model/cuda/cuda_llama_runner.h"
#include "compute/model/cuda/cuda_sequence.h"
#include "compute/model/cuda/device_llama_model.h"
#include "compute/model/engine_registry.h"

namespace fourierkv {
namespace {

constexpr int kMaxBatch = 32;
// Of the free memory: two workers may share a GPU.
constexpr double kShareOfFreeMemory = 0.4;

// A model or profile that the GPU's kernels cannot run is no fault of whoever gave it.
absl::Status NotOnGpu(const absl::Status& status) {
  return absl::IsInvalidArgument(status) ? absl::UnimplementedError(status.message()) : status;
}

absl::StatusOr<int64_t> DefaultMemory() {
  size_t free = 0, total = 0;
  absl::Status s = CudaStatus(cudaMemGetInfo(&free, &total), "asking for the free memory");
  if (!s.ok()) return s;
  return static_cast<int64_t>(static_cast<double>(free) * kShareOfFreeMemory);
}

// Half of the memory for each kind of place: a compact sequence of 32k tokens has about as many
// bytes in the one as in the other. No more than a full batch of the longest sequences has.
DeviceKvPoolOptions PoolSize(const DeviceProfile& profile, const ModelConfig& config,
                             int64_t memory) {
  const int64_t segment = profile.segment_tokens();
  const int64_t most = kMaxBatch * ((config.max_position_embeddings + segment - 1) / segment);
  const auto fit = [&](int64_t bytes_each) {
    return static_cast<int32_t>(std::clamp<int64_t>(memory / 2 / bytes_each, 1, most));
  };
  return {.blocks = fit(profile.geometry().DenseBytes(segment)),
          .slots = fit(DeviceKvPool::SlotBytes(profile))};
}

class CudaEngine final : public ModelEngine {
 public:
  static absl::StatusOr<std::unique_ptr<ModelEngine>> Create(const EngineOptions& options) {
    absl::StatusOr<std::shared_ptr<const DeviceProfile>> profile =
        DeviceProfile::Create(options.layout);
    if (!profile.ok()) return NotOnGpu(profile.status());
    absl::StatusOr<std::shared_ptr<const DeviceLlamaModel>> model =
        DeviceLlamaModel::Upload(*options.model);
    if (!model.ok()) return NotOnGpu(model.status());
    absl::StatusOr<int64_t> memory = options.kv_memory;
    if (*memory == 0) memory = DefaultMemory();
    if (!memory.ok()) return memory.status();
    absl::StatusOr<std::shared_ptr<DeviceKvPool>> pool =
        DeviceKvPool::Create(*profile, PoolSize(**profile, options.model->config(), *memory));
    if (!pool.ok()) return pool.status();
    absl::StatusOr<std::unique_ptr<CudaLlamaRunner>> runner = CudaLlamaRunner::Create(
        *model, *pool, {.max_batch = kMaxBatch, .chunk_tokens = kPromptChunkTokens});
    if (!runner.ok()) return NotOnGpu(runner.status());
    Log(LogLevel::kInfo, "engine.cuda",
        {{"weights_bytes", (*model)->bytes()},
         {"kv_bytes", (*pool)->bytes()},
         {"kv_blocks", (*pool)->blocks()},
         {"kv_slots", (*pool)->slots()}});
    const bool rounded = (*model)->rounded();
    return std::unique_ptr<ModelEngine>(new CudaEngine(
        std::make_shared<CudaEngineState>(*pool, *std::move(runner), kMaxBatch), rounded));
  }

  const char* name() const override { return "cuda"; }
  bool encodes_cheaply() const override { return true; }
  // Weights that are bf16 in their files are the same numbers on the host.
  const char* weight_dtype() const override { return rounded_ ? "bf16" : "fp32"; }

  absl::StatusOr<std::unique_ptr<ModelSequence>> NewSequence(
      const SequenceOptions& options) override {
    return CudaSequence::Create(state_, options);
  }

 private:
  CudaEngine(std::shared_ptr<CudaEngineState> state, bool rounded)
      : state_(std::move(state)), rounded_(rounded) {}

  const std::shared_ptr<CudaEngineState> state_;
  const bool rounded_;
};

const EngineRegistration kRegistration("cuda", &CudaEngine::Create);

}  // namespace
}  // namespace fourierkv
