#include "clients/loadtest/load_options.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace fourierkv::loadtest {
namespace {

constexpr int64_t kMostSegments = 4096;          // of a put
constexpr int64_t kMostKeys = int64_t{1} << 23;  // 256 MiB of them
constexpr int64_t kMostSegmentBytes = int64_t{256} << 20;

absl::Status Refuse(const std::string& message) { return absl::InvalidArgumentError(message); }

absl::Status CheckForms(const LoadOptions& o) {
  const bool compressed = o.fetch == SegmentForm::kCompact || o.fetch == SegmentForm::kDense;
  if (!o.profile.has_value() && (compressed || o.payload == SegmentForm::kCompact)) {
    return Refuse(
        "--profile none keeps everything exact: use it with --payload exact or lossless and "
        "--fetch exact or lossless");
  }
  if (o.payload == SegmentForm::kCompact && IsExactData(o.fetch)) {
    return Refuse(absl::StrCat("--payload compact sends no exact data that --fetch ",
                               FormName(o.fetch),
                               " could return: fetch compact or dense, or send exact or lossless"));
  }
  if (o.payload != SegmentForm::kExact && o.value_tokens % o.segment_tokens != 0) {
    return Refuse(absl::StrCat("--payload ", FormName(o.payload),
                               " is made of full segments: --value-tokens must be a multiple of ",
                               o.segment_tokens, ", and is ", o.value_tokens));
  }
  if (o.payload == SegmentForm::kCompact && o.segments() < 2) {
    return Refuse(absl::StrCat(
        "--payload compact needs two segments at least, since the first is kept exact: "
        "--value-tokens must be at least ",
        2 * o.segment_tokens));
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(const LoadOptions& o) {
  if (absl::Status s = o.geometry.Validate(); !s.ok()) return s;
  if (o.segments() > kMostSegments) {
    return Refuse(absl::StrCat("--value-tokens is ", o.value_tokens, "; at most ",
                               kMostSegments * o.segment_tokens, " (", kMostSegments,
                               " segments) fit into a put"));
  }
  if (o.segments() * o.population > kMostKeys) {
    return Refuse(absl::StrCat("--population of ", o.population, " sequences with ", o.segments(),
                               " segments each needs more than ", kMostKeys,
                               " keys: make it or --value-tokens smaller"));
  }
  if (o.geometry.DenseBytes(o.segment_tokens) > kMostSegmentBytes) {
    return Refuse(absl::StrCat("a segment of --layers ", o.geometry.layers, ", --kv-heads ",
                               o.geometry.kv_heads, " and --head-dim ", o.geometry.head_dim,
                               " has more than ", kMostSegmentBytes >> 20, " MiB"));
  }
  if (o.prefix_groups > o.population) {
    return Refuse(absl::StrCat("--prefix-groups is ", o.prefix_groups, ", and there are only ",
                               o.population, " sequences (--population)"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckLoadOptions(const LoadOptions& o) {
  if (o.profile.has_value() && o.profile->sequence.has_value()) {
    return Refuse(
        "--profile is one of whole sequences; the load test is made for profiles of segments");
  }
  if (absl::Status s = CheckSizes(o); !s.ok()) return s;
  if (absl::Status s = CheckForms(o); !s.ok()) return s;
  if (o.verify && o.mix.get == 0) {
    return Refuse("--verify checks what gets fetch, and --mix has none");
  }
  return absl::OkStatus();
}

absl::StatusOr<Mix> ParseMix(absl::string_view text) {
  const std::vector<absl::string_view> fields = absl::StrSplit(text, ':');
  double weights[3] = {};
  bool right = fields.size() == 3;
  for (size_t i = 0; right && i < 3; ++i) {
    right = absl::SimpleAtod(fields[i], &weights[i]) && weights[i] >= 0 && weights[i] <= 1e6;
  }
  if (!right || weights[0] + weights[1] + weights[2] <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--mix is ", text,
                     "; it must be three weights put:get:match from 0 to 1000000, as 1:4:4, and "
                     "not all 0"));
  }
  return Mix{.put = weights[0], .get = weights[1], .match = weights[2]};
}

absl::StatusOr<absl::StatusCode> ParseStatusCode(absl::string_view name) {
  for (int code = 1; code <= 16; ++code) {
    if (absl::StatusCodeToString(static_cast<absl::StatusCode>(code)) == name) {
      return static_cast<absl::StatusCode>(code);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--tolerate is ", name, "; it must name gRPC codes, as UNAVAILABLE"));
}

}  // namespace fourierkv::loadtest
