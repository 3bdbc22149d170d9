#include "compute/model/host_engine.h"

#include <algorithm>
#include <utility>

#include "compute/base/bfloat16.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {
namespace {

// Tokens [first, first + tokens) out of x: [n][kv_heads][head_dim], as
// [kv_heads][tokens][head_dim].
std::vector<uint16_t> GatherPart(const float* x, const KvGeometry& geometry, int64_t first,
                                 int64_t tokens) {
  const int dim = geometry.head_dim;
  std::vector<uint16_t> part(static_cast<size_t>(geometry.kv_heads) * tokens * dim);
  uint16_t* out = part.data();
  for (int head = 0; head < geometry.kv_heads; ++head) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = x + ((first + t) * geometry.kv_heads + head) * dim;
      for (int d = 0; d < dim; ++d) *out++ = FloatToBf16(row[d]);
    }
  }
  return part;
}

// Over a cache that a subclass owns.
class HostSequence : public ModelSequence {
 public:
  int64_t length() const override { return kv_.length(); }

  absl::Status Prefill(std::span<const int32_t> tokens, std::vector<float>* logits,
                       const PromptOptions& options) override {
    ForwardOptions forward;
    if (options.wanted) forward.on_layer = [&](int) { return options.wanted(); };
    if (options.on_part) {
      forward.on_qkv = [&](int layer, int64_t first, int n, const float*, const float* k,
                           const float* v) { return HandOut(layer, first, n, k, v, options); };
    }
    const int chunk = std::max(kPromptChunkTokens, segment_tokens_);
    const absl::Status status = fourierkv::Prefill(runner_, tokens, kv_, &out_, chunk, forward);
    if (status.ok() && logits != nullptr) *logits = std::move(out_.logits);
    return status;
  }

  absl::StatusOr<SampledToken> Step(int32_t token, Sampler& sampler) override {
    if (absl::Status s = runner_.Forward({&token, 1}, kv_, &out_); !s.ok()) return s;
    return sampler.Next(out_.logits);
  }

 protected:
  int64_t segment_tokens() const { return segment_tokens_; }

  HostSequence(std::shared_ptr<const LlamaModel> model, std::shared_ptr<ThreadPool> pool,
               int segment_tokens, KvCache* cache)
      : runner_(std::move(model), std::move(pool)), segment_tokens_(segment_tokens), kv_(*cache) {}

 private:
  absl::Status HandOut(int layer, int64_t first, int n, const float* k, const float* v,
                       const PromptOptions& options) const {
    for (int64_t offset = 0; offset < n; offset += segment_tokens_) {
      const int64_t tokens = std::min<int64_t>(segment_tokens_, n - offset);
      for (const Part part : kParts) {
        absl::Status s =
            options.on_part({layer, first + offset, tokens, part,
                             GatherPart(part == Part::kK ? k : v, kv_.geometry(), offset, tokens)});
        if (!s.ok()) return s;
      }
    }
    return absl::OkStatus();
  }

  LlamaRunner runner_;
  const int segment_tokens_;
  KvCache& kv_;
  ForwardOutput out_;
};

class SegmentedSequence final : public HostSequence {
 public:
  SegmentedSequence(const EngineOptions& options, std::unique_ptr<FillableKvCache> cache)
      : HostSequence(options.model, options.pool, options.segment_tokens, cache.get()),
        cache_(std::move(cache)) {}

  CacheStats stats() const override { return cache_->stats(); }
  FillTarget* fill_target() override { return cache_.get(); }
  absl::Status ReadExact(
      int64_t first, int64_t tokens,
      const std::function<absl::Status(ComputedPart part)>& on_part) const override {
    const KvGeometry& g = cache_->geometry();
    for (int layer = 0; layer < g.layers; ++layer) {
      for (int64_t at = 0; at < tokens; at += segment_tokens()) {
        for (const Part part : kParts) {
          ComputedPart exact = {
              layer, first + at, std::min(segment_tokens(), tokens - at), part, {}};
          exact.values.resize(g.kv_heads * exact.tokens * g.head_dim);
          absl::Status s =
              cache_->ReadExact(layer, exact.first, exact.tokens, part, exact.values.data());
          if (s.ok()) s = on_part(std::move(exact));
          if (!s.ok()) return s;
        }
      }
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<SealedSegment>> TakeSealed() override {
    auto* const compact = dynamic_cast<CompactKvCache*>(cache_.get());
    return compact == nullptr ? std::vector<SealedSegment>() : compact->TakeSealed();
  }

 private:
  const std::unique_ptr<FillableKvCache> cache_;
};

class WholeSequence final : public HostSequence {
 public:
  WholeSequence(std::shared_ptr<const LlamaModel> model, std::shared_ptr<ThreadPool> pool,
                std::unique_ptr<SequenceKvCache> cache)
      : HostSequence(std::move(model), std::move(pool), kPromptChunkTokens, cache.get()),
        cache_(std::move(cache)) {}

  CacheStats stats() const override { return cache_->stats(); }
  FillTarget* fill_target() override { return nullptr; }
  absl::Status ReadExact(int64_t, int64_t,
                         const std::function<absl::Status(ComputedPart)>&) const override {
    return absl::InvalidArgumentError("the sequence is compressed as a whole");
  }
  absl::StatusOr<std::vector<SealedSegment>> TakeSealed() override {
    return std::vector<SealedSegment>();
  }

 private:
  const std::unique_ptr<SequenceKvCache> cache_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FillableKvCache>> HostEngine::NewCache(
    const SequenceOptions& options) const {
  if (!options.compact) {
    absl::StatusOr<std::unique_ptr<DenseKvCache>> cache = DenseKvCache::Create(
        options_.model->config().Geometry(), options_.backend, options.max_tokens, kEngineKvDtype);
    if (!cache.ok()) return cache.status();
    return *std::move(cache);
  }
  absl::StatusOr<std::unique_ptr<CompactKvCache>> cache =
      CompactKvCache::Create(options_.layout, options_.backend,
                             {.recent_window = options.recent_window,
                              .max_tokens = options.max_tokens,
                              .dtype = kEngineKvDtype,
                              .max_relative_error = options.max_relative_error});
  if (!cache.ok()) return cache.status();
  return *std::move(cache);
}

absl::StatusOr<std::unique_ptr<ModelSequence>> HostEngine::NewSequence(
    const SequenceOptions& options) {
  absl::StatusOr<std::unique_ptr<FillableKvCache>> cache = NewCache(options);
  if (!cache.ok()) return cache.status();
  return std::make_unique<SegmentedSequence>(options_, *std::move(cache));
}

std::unique_ptr<ModelSequence> NewWholeSequence(std::shared_ptr<const LlamaModel> model,
                                                std::shared_ptr<ThreadPool> pool,
                                                std::unique_ptr<SequenceKvCache> cache) {
  return std::make_unique<WholeSequence>(std::move(model), std::move(pool), std::move(cache));
}

}  // namespace fourierkv
