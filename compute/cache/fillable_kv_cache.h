// What dense and compact caches share: exact tokens, and being filled while already in use.

#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/geometry.h"
#include "compute/cache/exact_layer.h"
#include "compute/cache/kv_cache.h"
#include "compute/cache/layer_gate.h"

namespace fourierkv {

// What a cache about to be filled will hold: tokens [0, length), of which segments
// 1 .. compact_segments are compact, except for `exact_inside`, and everything else is exact.
struct FillPlan {
  int64_t length = 0;
  int64_t compact_segments = 0;
  std::vector<int64_t> exact_inside = {};  // increasing
};

struct CacheStats {
  int64_t exact_tokens = 0;
  int64_t compact_segments = 0;
  int64_t exact_inside = 0;   // exact segments among the compact ones
  int64_t exact_bytes = 0;    // of exact tokens
  int64_t compact_bytes = 0;  // of compact segments, headers included
  int64_t dense_bytes = 0;    // what all tokens would take in a dense cache
};

// A cache of `max_tokens` tokens at most. The first segment is held exactly; the `settled` segments
// behind it are compact, held by a subclass, but for some that are exact; what follows is exact.
// Exact tokens stand in order of position, without gaps where compact segments are: attention does
// not depend on the place of a token, as its position is part of its K.
//
// Filling: an empty cache may be filled with fetched data instead of computed. The owner calls
// BeginFill; from then on length() is the plan's. Any thread may then install the parts of a layer
// and call MarkLayerReady (one thread at a time per layer; different layers at once if wanted),
// while the owner's thread runs the model: Append on a layer waits until that layer is ready, the
// fill has failed, or its deadline has passed. The filling thread must have stopped before the
// cache is destroyed. All other methods belong to the owner's thread.
//
// A chunk may be abandoned between Append and Advance: the next Append replaces what it left
// behind.
class FillableKvCache : public KvCache {
 public:
  const KvGeometry& geometry() const override { return geometry_; }
  int64_t length() const override { return length_; }
  int64_t bytes() const override;
  absl::Status Append(int layer, int n, const float* k, const float* v) override;
  absl::Status Attend(int layer, int n, int query_heads, const float* q, float* out) override;
  absl::Status Advance(int n) override;

  KvDtype dtype() const { return dtype_; }
  int64_t max_tokens() const { return max_tokens_; }
  CacheStats stats() const;

  // Room for `tokens` exact tokens in every layer, so that the pointers of exact_block() stay where
  // they are until then. ResourceExhausted beyond max_tokens.
  absl::Status Reserve(int64_t tokens);

  // The exact tokens of `layer` in order of position, those of an unfinished chunk included.
  ExactBlock exact_block(int layer) const { return layers_[layer].block(); }

  // FailedPrecondition unless the cache is empty; InvalidArgument for a plan that makes no sense;
  // ResourceExhausted for one longer than max_tokens.
  virtual absl::Status BeginFill(const FillPlan& plan, absl::Time deadline);

  // Positions [first_token, first_token + tokens) of `layer`; k, v: [kv_heads][tokens][head_dim] in
  // dtype(), copied. InvalidArgument for positions that the plan does not hold exactly;
  // FailedPrecondition for a layer that is not being filled.
  absl::Status InstallExact(int layer, int64_t first_token, int64_t tokens, const uint16_t* k,
                            const uint16_t* v);

  // FailedPrecondition, saying what is missing, unless everything planned was installed.
  absl::Status MarkLayerReady(int layer);

  // Gives up: the owner's thread gets `status` (not OK) from the first layer that is not ready.
  void FailFill(absl::Status status) { gate_.Fail(std::move(status)); }

 protected:
  FillableKvCache(const KvGeometry& geometry, KvDtype dtype, int64_t max_tokens,
                  int64_t segment_tokens, ComputeBackend* backend);

  // Adds the compact part of `layer` to what Attend reads.
  virtual void AddCompact(int /*layer*/, LayerKv* /*kv*/) const {}
  // Called when length() has grown.
  virtual absl::Status AfterAdvance() { return absl::OkStatus(); }
  // OK if every compact segment planned for `layer` is there.
  virtual absl::Status CheckCompactInstalled(int /*layer*/) const { return absl::OkStatus(); }
  virtual int64_t compact_segments() const { return 0; }
  virtual int64_t compact_bytes() const { return 0; }

  absl::Status CheckLayer(int layer) const;
  // OK if `layer` exists and waits to be filled.
  absl::Status CheckFilling(int layer) const;

  int64_t exact_tokens() const { return length_ - compact_tokens(); }
  // Segments behind the first that are compact or exact for good.
  int64_t settled_segments() const { return settled_; }
  const std::vector<int64_t>& exact_inside() const { return exact_inside_; }
  // Where the oldest segment that is not settled stands among the exact tokens.
  int64_t unsettled_index() const {
    return (1 + static_cast<int64_t>(exact_inside_.size())) * segment_tokens_;
  }
  // As Append: OK once every layer is ready.
  absl::Status WaitUntilFilled() const;
  // Settles the oldest segment that is not: as compact, whereby its tokens leave the exact store,
  // or as exact.
  void SettleOldest(bool compact);

  const KvGeometry geometry_;
  const KvDtype dtype_;
  ComputeBackend* const backend_;  // not owned

 private:
  const int64_t max_tokens_;
  int64_t compact_tokens() const {
    return (settled_ - static_cast<int64_t>(exact_inside_.size())) * segment_tokens_;
  }
  // Index among the exact tokens of the one at `position`, or -1 if that is compact; and back.
  int64_t ExactIndex(int64_t position) const;
  int64_t PositionOf(int64_t exact_index) const;
  absl::Status CheckPlan(const FillPlan& plan) const;

  const int64_t segment_tokens_;  // 0: everything is exact
  int64_t settled_ = 0;
  std::vector<int64_t> exact_inside_;  // increasing, from 1 to settled_
  int64_t length_ = 0;
  std::vector<ExactLayer> layers_;
  std::vector<int64_t> pending_;  // tokens appended since the last Advance, per layer
  LayerGate gate_;
  std::vector<std::vector<bool>> installed_;  // per layer and exact token, while filling
};

}  // namespace fourierkv
