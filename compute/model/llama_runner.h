// Computes a Llama-architecture model over a KV cache.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "compute/base/thread_pool.h"
#include "compute/cache/kv_cache.h"
#include "compute/model/llama_model.h"

namespace fourierkv {

enum class Logits { kNone, kLast, kAll };

struct ForwardOptions {
  Logits logits = Logits::kLast;

  // Called when the K and V of `layer` are in the cache, before its attention is computed: a
  // prefill worker can send them while the model goes on. A failure stops the pass and is returned.
  std::function<absl::Status(int layer)> on_layer = nullptr;

  // Called before on_layer with what the layer computed for n tokens from position `first`, after
  // RoPE: q [n][query_heads][head_dim], k and v [n][kv_heads][head_dim]. For calibration.
  std::function<absl::Status(int layer, int64_t first, int n, const float* q, const float* k,
                             const float* v)>
      on_qkv = nullptr;
};

struct ForwardOutput {
  std::vector<float> logits;  // [vocab], [n][vocab] or empty, as ForwardOptions::logits says
};

// The working memory of one sequence at a time; one thread. Several runners may share a model and a
// pool.
class LlamaRunner {
 public:
  LlamaRunner(std::shared_ptr<const LlamaModel> model, std::shared_ptr<ThreadPool> pool);

  const LlamaModel& model() const { return *model_; }

  // Computes `tokens` at positions cache.length() and following, and advances the cache. Chunks of
  // 256 to 512 tokens are fastest; memory is proportional to the chunk.
  //
  // InvalidArgument for no tokens, ids outside the vocabulary, or a cache of another geometry;
  // OutOfRange beyond the model's max_position_embeddings; otherwise what the cache or a callback
  // returned. After a failure before Advance the cache is as it was before, and may be used again.
  absl::Status Forward(std::span<const int32_t> tokens, KvCache& cache, ForwardOutput* out,
                       const ForwardOptions& options = {});

 private:
  absl::Status CheckInput(std::span<const int32_t> tokens, const KvCache& cache) const;
  // `rows`: how many of the last tokens are needed behind this layer; the others only leave K and
  // V.
  absl::Status RunLayer(int layer, int n, int rows, KvCache& cache, const Rope::Table& rope,
                        const ForwardOptions& options);
  void RunMlp(const LlamaLayer& weights, int rows, float* x);

  const std::shared_ptr<const LlamaModel> model_;
  const std::shared_ptr<ThreadPool> pool_;
  // Rows of the chunk: hidden state, normalised state, projections, attention's output, MLP.
  std::vector<float> x_, norm_, q_, k_, v_, attention_, gate_, up_;
};

// Runs `tokens` through in chunks, without logits until the last chunk, which gives those of the
// last token. `options` applies to every chunk, but for its `logits`.
absl::Status Prefill(LlamaRunner& runner, std::span<const int32_t> tokens, KvCache& cache,
                     ForwardOutput* out, int chunk_tokens = 512, ForwardOptions options = {});

}  // namespace fourierkv
