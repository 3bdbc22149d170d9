// What dense and compact caches share: exact tokens, and being filled while already in use.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/geometry.h"
#include "compute/cache/exact_layer.h"
#include "compute/cache/exact_places.h"
#include "compute/cache/fill_target.h"
#include "compute/cache/kv_cache.h"
#include "compute/cache/layer_gate.h"

namespace fourierkv {

// A cache of `max_tokens` tokens at most. The first segment is held exactly; the `settled` segments
// behind it are compact, held by a subclass, but for some that are exact; what follows is exact
// (ExactPlaces).
//
// While it is filled the owner's thread runs the model: Append on a layer waits until that layer is
// ready. All methods but those of FillTarget belong to the owner's thread.
//
// A chunk may be abandoned between Append and Advance: the next Append replaces what it left
// behind.
class FillableKvCache : public KvCache, public FillTarget {
 public:
  const KvGeometry& geometry() const override { return geometry_; }
  int64_t length() const override { return length_; }
  int64_t bytes() const override;
  absl::Status Append(int layer, int n, const float* k, const float* v) override;
  absl::Status Attend(int layer, int n, int query_heads, const float* q, float* out) override;
  absl::Status Advance(int n) override;

  KvDtype dtype() const override { return dtype_; }
  int64_t max_tokens() const { return max_tokens_; }
  CacheStats stats() const;

  // Room for `tokens` exact tokens in every layer, so that the pointers of exact_block() stay where
  // they are until then. ResourceExhausted beyond max_tokens.
  absl::Status Reserve(int64_t tokens);

  // The exact tokens of `layer` in order of position, those of an unfinished chunk included.
  ExactBlock exact_block(int layer) const { return layers_[layer].block(); }

  // K or V of positions [first_token, first_token + tokens) of `layer`, as InstallExact takes them.
  // InvalidArgument unless they are held exactly.
  absl::Status ReadExact(int layer, int64_t first_token, int64_t tokens, Part part,
                         uint16_t* out) const;

  absl::Status BeginFill(const FillPlan& plan, absl::Time deadline) override;
  absl::Status InstallExact(int layer, int64_t first_token, int64_t tokens, const uint16_t* k,
                            const uint16_t* v) override;
  // A dense cache: InvalidArgument.
  absl::Status InstallCompact(int layer, int64_t segment, SharedBytes k_blob,
                              SharedBytes v_blob) override;
  absl::Status MarkLayerReady(int layer) override;
  void FailFill(absl::Status status) override { gate_.Fail(std::move(status)); }

 protected:
  FillableKvCache(const KvGeometry& geometry, KvDtype dtype, int64_t max_tokens,
                  int64_t segment_tokens, ComputeBackend* backend);

  // Adds the compact part of `layer` to what Attend reads.
  virtual void AddCompact(int /*layer*/, LayerKv* /*kv*/) const {}
  // Called when length() has grown.
  virtual absl::Status AfterAdvance() { return absl::OkStatus(); }
  // OK if every compact segment planned for `layer` is there.
  virtual absl::Status CheckCompactInstalled(int /*layer*/) const { return absl::OkStatus(); }
  virtual int64_t compact_bytes() const { return 0; }

  absl::Status CheckLayer(int layer) const;
  // OK if `layer` exists and waits to be filled.
  absl::Status CheckFilling(int layer) const;

  int64_t exact_tokens() const { return length_ - places_.compact_tokens(); }
  const ExactPlaces& places() const { return places_; }
  int64_t compact_segments() const { return places_.compact_segments(); }
  // Segments behind the first that are compact or exact for good.
  int64_t settled_segments() const { return places_.settled(); }
  const std::vector<int64_t>& exact_inside() const { return places_.exact_inside(); }
  // Where the oldest segment that is not settled stands among the exact tokens.
  int64_t unsettled_index() const { return places_.unsettled_index(); }
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
  const int64_t segment_tokens_;  // 0: everything is exact
  ExactPlaces places_;
  int64_t length_ = 0;
  std::vector<ExactLayer> layers_;
  std::vector<int64_t> pending_;  // tokens appended since the last Advance, per layer
  LayerGate gate_;
  std::vector<std::vector<bool>> installed_;  // per layer and exact token, while filling
};

}  // namespace fourierkv
