#include "proto/support/retry_info.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/unknown_field_set.h>

#include <algorithm>

#include "absl/strings/cord.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

constexpr char kTypeUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr absl::Duration kLongestDelay = absl::Hours(24);

// Field numbers of google/rpc/status.proto and google/rpc/error_details.proto, which distributions
// do not package.
constexpr int kStatusCode = 1;
constexpr int kStatusMessage = 2;
constexpr int kStatusDetails = 3;
constexpr int kRetryDelay = 1;

std::string Serialize(const UnknownFieldSet& fields) {
  std::string bytes;
  fields.SerializeToString(&bytes);
  return bytes;
}

std::optional<absl::Duration> ParseRetryInfo(const std::string& bytes) {
  UnknownFieldSet fields;
  if (!fields.ParseFromString(bytes)) return std::nullopt;
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    if (field.number() != kRetryDelay || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) {
      continue;
    }
    google::protobuf::Duration delay;
    if (!delay.ParseFromString(field.length_delimited())) return std::nullopt;
    return std::clamp(FromProto(delay), absl::ZeroDuration(), kLongestDelay);
  }
  return std::nullopt;
}

}  // namespace

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay) {
  UnknownFieldSet info;
  info.AddLengthDelimited(
      kRetryDelay,
      ToProto(std::clamp(delay, absl::ZeroDuration(), kLongestDelay)).SerializeAsString());
  status.SetPayload(kTypeUrl, absl::Cord(Serialize(info)));
  return status;
}

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> info = status.GetPayload(kTypeUrl);
  if (!info.has_value()) return std::nullopt;
  return ParseRetryInfo(std::string(*info));
}

std::string StatusDetails(const absl::Status& status) {
  std::optional<absl::Duration> delay = RetryAfter(status);
  if (!delay.has_value() && absl::IsResourceExhausted(status)) delay = kDefaultRetryDelay;
  if (!delay.has_value()) return "";
  UnknownFieldSet info;
  info.AddLengthDelimited(kRetryDelay, ToProto(*delay).SerializeAsString());
  google::protobuf::Any any;
  any.set_type_url(kTypeUrl);
  any.set_value(Serialize(info));
  UnknownFieldSet fields;
  fields.AddVarint(kStatusCode, static_cast<uint64_t>(status.code()));
  fields.AddLengthDelimited(kStatusMessage, std::string(status.message()));
  fields.AddLengthDelimited(kStatusDetails, any.SerializeAsString());
  return Serialize(fields);
}

absl::Status WithStatusDetails(absl::Status status, const std::string& details) {
  UnknownFieldSet fields;
  if (status.ok() || details.empty() || !fields.ParseFromString(details)) return status;
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    google::protobuf::Any any;
    if (field.number() != kStatusDetails || field.type() != UnknownField::TYPE_LENGTH_DELIMITED ||
        !any.ParseFromString(field.length_delimited()) || any.type_url() != kTypeUrl) {
      continue;
    }
    if (const std::optional<absl::Duration> delay = ParseRetryInfo(any.value())) {
      return WithRetryAfter(std::move(status), *delay);
    }
  }
  return status;
}

}  // namespace fourierkv
