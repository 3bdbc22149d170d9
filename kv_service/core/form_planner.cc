#include "kv_service/core/form_planner.h"

#include "kv_service/core/archived_blob.h"

namespace fourierkv {
namespace {

// What each form can be made of, best first.
std::span<const SegmentForm> Sources(SegmentForm form) {
  static constexpr SegmentForm kOfExact[] = {SegmentForm::kLossless};
  static constexpr SegmentForm kOfLossless[] = {SegmentForm::kExact};
  static constexpr SegmentForm kOfCompact[] = {SegmentForm::kExact, SegmentForm::kLossless,
                                               SegmentForm::kArchived};
  static constexpr SegmentForm kOfArchived[] = {SegmentForm::kExact, SegmentForm::kLossless};
  static constexpr SegmentForm kOfDense[] = {SegmentForm::kCompact, SegmentForm::kExact,
                                             SegmentForm::kLossless, SegmentForm::kArchived};
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
      return kOfArchived;
  }
  return {};
}

bool MayBe(const StoredSegment& segment, SegmentForm form) {
  if (form == SegmentForm::kCompact) return !segment.tail && segment.context->layout != nullptr;
  if (form == SegmentForm::kArchived) return !segment.tail && CanArchive(*segment.context);
  return true;
}

}  // namespace

bool MayHold(const StoredSegment& segment, SegmentForm form) {
  return form != SegmentForm::kDense && MayBe(segment, form);
}

std::vector<FormWay> WaysToServe(const StoredSegment& segment,
                                 std::span<const SegmentForm> wanted) {
  PerForm<bool> held;
  for (const SegmentForm form : kHeldForms) held[form] = segment.forms[form] != nullptr;
  return WaysToServe(segment, held, wanted);
}

std::vector<FormWay> WaysToServe(const StoredSegment& segment, const PerForm<bool>& held,
                                 std::span<const SegmentForm> wanted) {
  std::vector<FormWay> ways;
  for (const SegmentForm form : wanted) {
    if (held[form]) ways.push_back({form, form});
  }
  for (const SegmentForm form : wanted) {
    if (held[form] || !MayBe(segment, form)) continue;
    for (const SegmentForm source : Sources(form)) {
      if (held[source]) ways.push_back({form, source});
    }
  }
  return ways;
}

std::optional<float> KnownError(const StoredSegment& segment, const FormWay& way) {
  const bool measured = way.form == SegmentForm::kCompact || way.form == SegmentForm::kArchived;
  if (measured && !way.held()) return std::nullopt;
  return segment.forms[way.source]->max_relative_error();
}

}  // namespace fourierkv
