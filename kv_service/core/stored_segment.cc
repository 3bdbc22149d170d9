#include "kv_service/core/stored_segment.h"

#include <algorithm>
#include <utility>

namespace fourierkv {

FormBlobs::FormBlobs(SegmentForm form, std::vector<FormPart> parts) : form_(form) {
  blobs_.reserve(parts.size());
  for (FormPart& part : parts) {
    bytes_ += part.blob->size();
    mean_relative_error_ += part.relative_error / static_cast<float>(parts.size());
    max_relative_error_ = std::max(max_relative_error_, part.relative_error);
    blobs_.push_back(std::move(part.blob));
  }
}

const FormPtr& StoredSegment::form(SegmentForm form) const {
  static const FormPtr kNone;
  if (form == SegmentForm::kExact) return exact;
  if (form == SegmentForm::kCompact) return compact;
  return kNone;
}

}  // namespace fourierkv
