// A cache that is filled with fetched data instead of computed.

#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "compute/base/geometry.h"
#include "compute/cache/shared_bytes.h"

namespace fourierkv {

// What a cache about to be filled will hold: tokens [0, length), of which segments
// 1 .. compact_segments are compact, except for `exact_inside`, and everything else is exact.
struct FillPlan {
  int64_t length = 0;
  int64_t compact_segments = 0;
  std::vector<int64_t> exact_inside = {};  // increasing
};

// InvalidArgument for a plan that makes no sense with segments of `segment_tokens` (0: everything
// is exact); ResourceExhausted for one longer than max_tokens.
absl::Status CheckFillPlan(const FillPlan& plan, int64_t segment_tokens, int64_t max_tokens);

// The owner of a cache calls BeginFill while it is empty; from then on its length is the plan's.
// Any thread, one at a time for each layer, may then install the parts of a layer and call
// MarkLayerReady, while the owner goes on: it waits for what is not there yet, until the fill has
// failed or its deadline has passed. The filling thread must have stopped before the cache is
// destroyed.
class FillTarget {
 public:
  virtual ~FillTarget() = default;

  virtual const KvGeometry& geometry() const = 0;
  virtual KvDtype dtype() const = 0;

  // FailedPrecondition unless the cache is empty; errors of CheckFillPlan; ResourceExhausted if
  // there is no memory for it.
  virtual absl::Status BeginFill(const FillPlan& plan, absl::Time deadline) = 0;

  // Positions [first_token, first_token + tokens) of `layer`; k, v: [kv_heads][tokens][head_dim] in
  // dtype(), copied. InvalidArgument for positions that the plan does not hold exactly;
  // FailedPrecondition for a layer that is not being filled.
  virtual absl::Status InstallExact(int layer, int64_t first_token, int64_t tokens,
                                    const uint16_t* k, const uint16_t* v) = 0;

  // K and V of `layer` of one compact segment of the plan, as whole blobs, which may stay shared.
  // Both are verified (OpenCompactBlob), so that nothing they hold can make attention give NaN.
  // Errors are those of OpenCompactBlob; InvalidArgument for a segment that the plan does not hold
  // compact; FailedPrecondition for a layer that is not being filled.
  virtual absl::Status InstallCompact(int layer, int64_t segment, SharedBytes k_blob,
                                      SharedBytes v_blob) = 0;

  // FailedPrecondition, saying what is missing, unless everything planned was installed.
  virtual absl::Status MarkLayerReady(int layer) = 0;

  // Gives up: the owner's thread gets `status` (not OK) where it waits.
  virtual void FailFill(absl::Status status) = 0;
};

}  // namespace fourierkv
