// Small conversions between generated messages and the project's own types, for both ends of the
// wire.

#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "compute/base/geometry.h"
#include "compute/codec/segment_blob.h"
#include "fourierkv/v1/types.pb.h"
#include "google/protobuf/duration.pb.h"

namespace fourierkv {

v1::KvPart ToProto(Part part);
v1::SegmentForm ToProto(SegmentForm form);
// InvalidArgument for UNSPECIFIED and unknown values; `field` is named in the message.
absl::StatusOr<Part> FromProto(v1::KvPart part, absl::string_view field);
absl::StatusOr<SegmentForm> FromProto(v1::SegmentForm form, absl::string_view field);

const char* DtypeName(KvDtype dtype);  // "bf16", "fp16"
absl::StatusOr<KvDtype> ParseKvDtype(absl::string_view name, absl::string_view field);

google::protobuf::Duration ToProto(absl::Duration duration);
absl::Duration FromProto(const google::protobuf::Duration& duration);

}  // namespace fourierkv
