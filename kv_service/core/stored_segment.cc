#include "kv_service/core/stored_segment.h"

#include <algorithm>
#include <iterator>
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

const FormPtr& StoredSegment::exact_data() const {
  const FormPtr& exact = forms[SegmentForm::kExact];
  return exact != nullptr ? exact : forms[SegmentForm::kLossless];
}

bool StoredSegment::HoldsAnything() const {
  return std::any_of(std::begin(kHeldForms), std::end(kHeldForms),
                     [this](SegmentForm form) { return forms[form] != nullptr; });
}

int64_t StoredSegment::bytes() const {
  int64_t bytes = 0;
  for (const SegmentForm form : kHeldForms) {
    if (forms[form] != nullptr) bytes += forms[form]->bytes();
  }
  return bytes;
}

int64_t SegmentSummary::bytes() const {
  int64_t bytes = 0;
  for (const SegmentForm form : kHeldForms) bytes += forms[form].bytes;
  return bytes;
}

}  // namespace fourierkv
