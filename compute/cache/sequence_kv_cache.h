// A cache in the published form of FourierAttention: between the first and the recent tokens one
// segment, however long, that grows token by token (docs/faithful.md).

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/cache/exact_layer.h"
#include "compute/cache/fillable_kv_cache.h"
#include "compute/cache/kv_cache.h"
#include "compute/cache/layer_gate.h"
#include "compute/codec/sequence_layout.h"
#include "compute/sequence/sequence_middle.h"

namespace fourierkv {

struct SequenceCacheOptions {
  // Prompt and generated tokens together, 1 to kMaxSequenceTokens: decides the basis's period.
  int64_t capacity = 0;
  // Until so many tokens are there everything stays exact, so that a prompt is computed exactly.
  int64_t prompt_tokens = 0;
  KvDtype dtype = KvDtype::kBf16;
};

// Tokens [0, sink) and the last recent_tokens are exact; Advance moves what leaves the recent ones
// to the middle (SequenceScope), once there is enough of it and the prompt is complete.
//
// Instead of being computed, an empty cache may be filled: BeginFill, then InstallPayloads for each
// layer, from any thread, while the owner's thread runs the model; Append on a layer waits for it.
// The filling thread must have stopped before the cache is destroyed. All other methods belong to
// the owner's thread.
class SequenceKvCache final : public KvCache {
 public:
  // `backend` must outlive the cache. InvalidArgument for a capacity out of bounds.
  static absl::StatusOr<std::unique_ptr<SequenceKvCache>> Create(
      std::shared_ptr<const SequenceLayout> layout, ComputeBackend* backend,
      std::shared_ptr<ThreadPool> pool, const SequenceCacheOptions& options);

  // What the published method makes of a prompt that was computed exactly, with room for `max_new`
  // more tokens. InvalidArgument for an empty cache, one of another geometry, and values that
  // cannot be encoded.
  static absl::StatusOr<std::unique_ptr<SequenceKvCache>> FromDense(
      std::shared_ptr<const SequenceLayout> layout, ComputeBackend* backend,
      std::shared_ptr<ThreadPool> pool, const DenseKvCache& dense, int64_t max_new);

  const KvGeometry& geometry() const override { return geometry_; }
  int64_t length() const override { return length_; }
  // Exact tokens, and of the middle what SequenceMiddle holds: coefficients in float.
  int64_t bytes() const override;
  // ResourceExhausted, naming max_new, beyond the capacity: the basis ends there.
  absl::Status Append(int layer, int n, const float* k, const float* v) override;
  absl::Status Attend(int layer, int n, int query_heads, const float* q, float* out) override;
  // InvalidArgument if a value that joins the middle cannot be encoded.
  absl::Status Advance(int n) override;

  const SequenceLayout& layout() const { return *layout_; }
  int64_t capacity() const { return options_.capacity; }
  int64_t middle_tokens() const { return middle_tokens_; }
  // What all layers take when stored: coefficients in the profile's width.
  int64_t payload_bytes() const { return layout_->PayloadBytes(length_); }
  // The middle counts as compact bytes, but not as segments.
  CacheStats stats() const;

  // Takes the last token back, to compute it once more for its logits; a cache being filled may
  // still be. FailedPrecondition for an empty cache. Requires that nothing was appended since the
  // last Advance.
  absl::Status ForgetLast();

  // The cache will hold `tokens` tokens. FailedPrecondition unless it is empty; InvalidArgument for
  // a length out of bounds; ResourceExhausted for one beyond the capacity.
  absl::Status BeginFill(int64_t tokens, absl::Time deadline);
  // Payloads of K and V of `layer`, copied; encoded for this capacity. Errors are those of
  // CheckSequencePayload; FailedPrecondition for a layer that is not being filled.
  absl::Status InstallPayloads(int layer, std::span<const std::byte> k,
                               std::span<const std::byte> v);
  // Gives up: the owner's thread gets `status` (not OK) from the first layer that is not ready.
  void FailFill(absl::Status status) { gate_.Fail(std::move(status)); }

 private:
  SequenceKvCache(std::shared_ptr<const SequenceLayout> layout, ComputeBackend* backend,
                  std::shared_ptr<ThreadPool> pool, const SequenceCacheOptions& options);

  absl::Status CheckLayer(int layer) const;
  int64_t exact_tokens() const { return length_ - middle_tokens_; }
  SequenceMiddle* middle(int layer, Part part) const {
    return middles_[layer * 2 + static_cast<int>(part)].get();
  }
  // Moves the oldest n exact tokens behind the sink to the middle.
  absl::Status MoveToMiddle(int64_t n);
  // The same from elsewhere: K and V of each layer, [kv_heads][n][head_dim] at `head_stride`.
  absl::Status Encode(std::span<const ExactBlock> from, int64_t n);

  const std::shared_ptr<const SequenceLayout> layout_;
  const KvGeometry geometry_;
  const SequenceCacheOptions options_;
  ComputeBackend* const backend_;  // not owned
  const std::shared_ptr<ThreadPool> pool_;
  int64_t length_ = 0;
  int64_t middle_tokens_ = 0;
  int64_t filled_tokens_ = 0;                   // that payloads hold; length_ may be one less
  std::shared_ptr<const SequenceBasis> basis_;  // null without a middle
  std::vector<ExactLayer> layers_;              // sink, then recent tokens
  std::vector<std::unique_ptr<SequenceMiddle>> middles_;  // layer * 2 + part; null without
  std::vector<int64_t> pending_;  // tokens appended since the last Advance, per layer
  LayerGate gate_;
};

}  // namespace fourierkv
