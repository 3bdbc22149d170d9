#include "kv_service/core/put_size.h"

#include "kv_service/core/blob_identity.h"

namespace fourierkv {

int64_t KnownBytes(const PutPlan& plan, const PlannedSegment& planned,
                   const std::optional<StoredSegment>& stored) {
  StoredSegment segment;
  segment.key = planned.key;
  segment.parent = planned.parent;
  segment.context = plan.context;
  segment.index = planned.index;
  segment.tokens = planned.tokens;
  segment.tail = planned.tail;
  segment.capacity = plan.sequence_capacity;
  const auto bytes_of = [&](SegmentForm form) -> int64_t {
    if (!HasFixedSize(form)) return 0;
    if (stored.has_value() && stored->forms[form] != nullptr) return 0;
    if (IsExactData(form) && stored.has_value() && stored->exact_data() != nullptr) return 0;
    int64_t bytes = 0;
    for (int layer = 0; layer < plan.context->ns.geometry.layers; ++layer) {
      for (const Part part : kParts) {
        bytes += static_cast<int64_t>(kBlobHeaderBytes) +
                 static_cast<int64_t>(ExpectedHeader(segment, form, layer, part, 0).payload_bytes);
      }
    }
    return bytes;
  };
  return (planned.keep_exact ? bytes_of(plan.exact_form) : 0) +
         (planned.keep_compact ? bytes_of(plan.compressed_form) : 0);
}

}  // namespace fourierkv
