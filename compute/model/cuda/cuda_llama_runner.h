// Computes a Llama-architecture model on a GPU, over KV caches in its memory.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/cuda/device_kv_tables.h"
#include "compute/cache/cuda/segment_decoder.h"
#include "compute/cache/cuda/segment_sealer.h"
#include "compute/model/cuda/attention_schedules.h"
#include "compute/model/cuda/device_llama_model.h"
#include "compute/model/cuda/gemm.h"
#include "compute/model/llama_runner.h"
#include "kernels/llama_ops.h"

namespace fourierkv {

struct CudaRunnerOptions {
  int max_batch = 32;      // sequences decoded at once, 1 to 1024
  int chunk_tokens = 512;  // of a prompt, computed at once, 1 to 8192
};

// One sequence of a decode step, and its token at position cache->length().
struct DecodeRow {
  DeviceKvCache* cache = nullptr;
  int32_t token = 0;
};

struct DecodeOutput {
  std::vector<kernels::TokenChoice> choices;  // [rows]: the likeliest next token of each
  std::vector<float> logits;                  // [rows][vocab], or empty if not asked for
};

// Works for one thread. The hidden state is float, what goes into matrix products bf16, sums are
// float; K and V are kept in bf16. Several runners may share a model; a pool belongs to one.
class CudaLlamaRunner {
 public:
  // InvalidArgument for options out of bounds, or a pool for a model of another geometry;
  // ResourceExhausted if the device has too little memory.
  static absl::StatusOr<std::unique_ptr<CudaLlamaRunner>> Create(
      std::shared_ptr<const DeviceLlamaModel> model, std::shared_ptr<DeviceKvPool> pool,
      const CudaRunnerOptions& options);
  ~CudaLlamaRunner();
  CudaLlamaRunner(const CudaLlamaRunner&) = delete;
  CudaLlamaRunner& operator=(const CudaLlamaRunner&) = delete;

  const DeviceLlamaModel& model() const { return *model_; }
  const DeviceKvPool& pool() const { return *pool_; }

  // Refuses what Extend and DecodeStep would for `tokens` behind `cache`, but for want of memory.
  // Thread safe.
  absl::Status CheckTokens(std::span<const int32_t> tokens, const DeviceKvCache& cache) const;

  // Extend, then Seal.
  absl::Status Prefill(std::span<const int32_t> tokens, DeviceKvCache& cache, ForwardOutput* out,
                       Logits logits = Logits::kLast);

  // Computes `tokens` at positions cache.length() and following; all of them stay exact, those that
  // become due, too, for which there must be slots. `out` gets the logits of the last token
  // (Logits::kLast) or none (kNone); kAll is not offered.
  //
  // With nothing changed: InvalidArgument for no tokens, ids outside the vocabulary or a cache of
  // another pool; OutOfRange beyond the model's max_position_embeddings; ResourceExhausted if the
  // pool has too few blocks or slots, or the device too little memory to decode compact segments.
  absl::Status Extend(std::span<const int32_t> tokens, DeviceKvCache& cache, ForwardOutput* out,
                      Logits logits = Logits::kLast);

  // Computes one token of each of up to max_batch sequences, and seals what has become due. From
  // the second step of a batch size on this is one graph. Errors are those of Extend;
  // InvalidArgument also for a cache given twice. They leave lengths as they were.
  absl::Status DecodeStep(std::span<const DecodeRow> rows, DecodeOutput* out,
                          bool with_logits = false);

  // Seals every segment of `caches` that is due.
  absl::Status Seal(std::span<DeviceKvCache* const> caches) {
    return sealer_->Seal(caches, stream_);
  }

 private:
  using Attention = std::function<absl::Status(int layer)>;
  struct Graph;

  CudaLlamaRunner(std::shared_ptr<const DeviceLlamaModel> model, std::shared_ptr<DeviceKvPool> pool,
                  const CudaRunnerOptions& options);
  absl::Status Allocate();
  absl::Status AllocateAttentionWorkspace();
  absl::Status CheckToken(size_t index, int32_t token) const;
  absl::Status CheckRoom(const DeviceKvCache& cache, int64_t tokens) const;
  // Products of `rows` rows can then be captured.
  absl::Status PrepareProducts(int rows, int logit_rows);
  // Copies tokens_, positions_ and row_pages_ to the device.
  absl::Status UploadRows();

  // Enqueue the parts of a pass over `rows` rows.
  absl::Status Embed(int rows);
  absl::Status RunLayers(int rows, const Attention& attention);
  absl::Status BeforeAttention(int layer, int rows);
  absl::Status AfterAttention(int layer, int rows);
  absl::Status AttendChunk(int layer, int rows, int64_t tokens);
  absl::Status AttendBatch(int layer, int rows);
  absl::Status AttendExactBatch(int layer, int rows);
  // logits_ of rows [first, first + rows).
  absl::Status Finish(int first, int rows);
  absl::Status EnqueueStep(int rows, bool exact);

  absl::Status RunChunk(std::span<const int32_t> tokens, DeviceKvCache& cache, bool with_logits);
  absl::Status PrepareStep(std::span<const DecodeRow> rows);
  // `exact`: no sequence has compact segments.
  absl::Status LaunchStep(int rows, bool exact);

  const std::shared_ptr<const DeviceLlamaModel> model_;
  const std::shared_ptr<DeviceKvPool> pool_;
  const CudaRunnerOptions options_;
  const int max_rows_;  // of any pass
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Gemm> gemm_;
  std::unique_ptr<DeviceKvTables> tables_;
  std::unique_ptr<SegmentSealer> sealer_;
  SegmentDecoder decoder_;
  std::map<std::pair<int, bool>, Graph> graphs_;  // of decode steps: of so many rows, exact

  std::vector<int32_t> tokens_, positions_, row_pages_;
  DeviceBuffer device_rows_;  // the same three, max_rows_ each
  DeviceBuffer rope_;         // [rows][2][head_dim / 2]
  DeviceBuffer x_;            // float [rows][hidden]
  DeviceBuffer norm_;         // bf16 [rows][hidden]
  DeviceBuffer qkv_;          // float [rows][query_heads + 2 kv_heads][head_dim]
  DeviceBuffer q_;            // bf16 [rows][query_heads][head_dim]
  DeviceBuffer attention_;    // like q_
  DeviceBuffer gate_up_;      // bf16 [rows][2][intermediate]
  DeviceBuffer mlp_;          // bf16 [rows][intermediate]
  DeviceBuffer logits_;       // float [max_batch][vocab]
  DeviceBuffer choices_;      // TokenChoice [max_batch]
  DeviceBuffer attention_workspace_;
  AttentionSchedules schedules_;
  DeviceBuffer exact_workspace_;  // of attention on exact tokens only
};

}  // namespace fourierkv
