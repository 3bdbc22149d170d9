// A dense cache in which one head alone has been compressed: what its errors do to the model.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "clients/eval/cache_form.h"
#include "compute/codec/profile.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

struct HeadPlace {
  int layer = 0;
  int head = 0;  // KV head
  Part part = Part::kK;
};

// Every segment that a compact cache would compress is encoded and decoded for that head; the
// other heads, and its exact tokens, are untouched. Attention then runs as on any dense cache,
// which is faster than decoding a whole compact cache for each chunk. `backend` must outlive it.
std::unique_ptr<CacheForm> MakeOneHeadForm(const KvGeometry& model, const HeadPlace& place,
                                           const HeadProfile& head, BasisKind basis,
                                           int segment_tokens, int64_t recent_window,
                                           ComputeBackend* backend);

}  // namespace fourierkv
