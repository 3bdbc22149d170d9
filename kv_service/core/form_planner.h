// Which held form of a segment serves a wish, and out of which a missing form can be made.

#pragma once

#include <optional>
#include <span>
#include <vector>

#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// One way to serve a segment: `source` is held, and made into `form` unless it is that already.
struct FormWay {
  SegmentForm form = SegmentForm::kExact;
  SegmentForm source = SegmentForm::kExact;

  bool held() const { return form == source; }
  bool operator==(const FormWay&) const = default;
};

// Whether a store may hold `form` of the segment: COMPACT and ARCHIVED need a profile that makes
// them, and no tail; DENSE is only ever made.
bool MayHold(const StoredSegment& segment, SegmentForm form);

// All ways to give one of `wanted`, best first: forms that are held, in the order of `wanted`; then
// forms that can be made, in that order, each of its most faithful source first, then its cheapest.
// COMPACT is made of full segments and whole sequences with a profile only, ARCHIVED if that has an
// archive section. DENSE is what COMPACT decodes to, so it is made of that if it can be, else
// copied from exact data, else decoded from ARCHIVED.
std::vector<FormWay> WaysToServe(const StoredSegment& segment, std::span<const SegmentForm> wanted);

// The same where `held` says which forms there are.
std::vector<FormWay> WaysToServe(const StoredSegment& segment, const PerForm<bool>& held,
                                 std::span<const SegmentForm> wanted);

// The largest relative error of what `way` gives, or nullopt if it is measured only when the form
// is made.
std::optional<float> KnownError(const StoredSegment& segment, const FormWay& way);

}  // namespace fourierkv
