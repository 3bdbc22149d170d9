#include "kv_service/core/form_planner.h"

namespace fourierkv {
namespace {

// What each form can be made of, cheapest first.
std::span<const SegmentForm> Sources(SegmentForm form) {
  static constexpr SegmentForm kOfExact[] = {SegmentForm::kLossless};
  static constexpr SegmentForm kOfLossless[] = {SegmentForm::kExact};
  static constexpr SegmentForm kOfCompact[] = {SegmentForm::kExact, SegmentForm::kLossless};
  static constexpr SegmentForm kOfDense[] = {SegmentForm::kCompact, SegmentForm::kExact,
                                             SegmentForm::kLossless};
  switch (form) {
    case SegmentForm::kExact:
      return kOfExact;
    case SegmentForm::kLossless:
      return kOfLossless;
    case SegmentForm::kCompact:
      return kOfCompact;
    case SegmentForm::kDense:
      return kOfDense;
    case SegmentForm::kArchived:
      break;
  }
  return {};
}

bool MayBe(const StoredSegment& segment, SegmentForm form) {
  return form != SegmentForm::kCompact || (!segment.tail && segment.context->layout != nullptr);
}

}  // namespace

std::vector<FormWay> WaysToServe(const StoredSegment& segment,
                                 std::span<const SegmentForm> wanted) {
  std::vector<FormWay> ways;
  for (const SegmentForm form : wanted) {
    if (segment.forms[form] != nullptr) ways.push_back({form, form});
  }
  for (const SegmentForm form : wanted) {
    if (segment.forms[form] != nullptr || !MayBe(segment, form)) continue;
    for (const SegmentForm source : Sources(form)) {
      if (segment.forms[source] != nullptr) ways.push_back({form, source});
    }
  }
  return ways;
}

std::optional<float> KnownError(const StoredSegment& segment, const FormWay& way) {
  if (way.form == SegmentForm::kCompact && !way.held()) return std::nullopt;
  return segment.forms[way.source]->max_relative_error();
}

}  // namespace fourierkv
