#include "proto/support/convert.h"

#include "absl/strings/str_cat.h"

namespace fourierkv {

v1::KvPart ToProto(Part part) { return part == Part::kK ? v1::KV_PART_K : v1::KV_PART_V; }

v1::SegmentForm ToProto(SegmentForm form) { return static_cast<v1::SegmentForm>(form); }

absl::StatusOr<Part> FromProto(v1::KvPart part, absl::string_view field) {
  if (part == v1::KV_PART_K) return Part::kK;
  if (part == v1::KV_PART_V) return Part::kV;
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", static_cast<int>(part), "; it must be K or V"));
}

absl::StatusOr<SegmentForm> FromProto(v1::SegmentForm form, absl::string_view field) {
  switch (form) {
    case v1::SEGMENT_FORM_EXACT:
      return SegmentForm::kExact;
    case v1::SEGMENT_FORM_COMPACT:
      return SegmentForm::kCompact;
    case v1::SEGMENT_FORM_DENSE:
      return SegmentForm::kDense;
    case v1::SEGMENT_FORM_LOSSLESS:
      return SegmentForm::kLossless;
    case v1::SEGMENT_FORM_ARCHIVED:
      return SegmentForm::kArchived;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat(field, " is ", static_cast<int>(form),
                       "; it must be EXACT, COMPACT, DENSE, LOSSLESS or ARCHIVED"));
  }
}

const char* DtypeName(KvDtype dtype) { return dtype == KvDtype::kBf16 ? "bf16" : "fp16"; }

absl::StatusOr<KvDtype> ParseKvDtype(absl::string_view name, absl::string_view field) {
  if (name == "bf16") return KvDtype::kBf16;
  if (name == "fp16") return KvDtype::kFp16;
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is '", name, "'; it must be bf16 or fp16"));
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration message;
  message.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  message.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
  return message;
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

}  // namespace fourierkv
