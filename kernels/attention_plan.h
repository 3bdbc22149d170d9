// How one layer's compact segments are walked by the attention kernel: what to copy, chunk by chunk,
// and what each chunk means. Made once for a layer of a profile, on the host.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

// A host buffer to be copied to device memory as it is, and the view whose pointers are still
// offsets into it: OnDevice() gives the view to launch with.
struct AttentionPlanView {
  int32_t kv_heads;
  int32_t head_dim;
  int32_t segment_tokens;
  const uint8_t* data;   // device memory, 16-byte aligned
  int64_t bytes;
  int32_t header;        // offset of the plan's header in `data`
  int32_t shared_bytes;  // dynamic shared memory of a block
  int32_t k_rotated;     // some head's K is rotated: queries are rotated by a launch of their own
  int32_t segment_cost;  // cost of a unit of 256 compact tokens, against ...
  int32_t page_cost;     // ... that of a page
};

// PartViews whose pointers are to host memory. Unless it returns an empty string, which says why the
// kernel cannot run such segments, `buffer` and `view` (all but `data`) are complete.
std::string BuildAttentionPlan(const PartView& k, const PartView& v, std::vector<uint8_t>* buffer,
                               AttentionPlanView* view);

}  // namespace fourierkv::kernels
