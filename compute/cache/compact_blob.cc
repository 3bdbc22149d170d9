#include "compute/cache/compact_blob.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "compute/codec/payload_check.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {
namespace {

// What is wrong with a blob's header, or empty.
std::string Mismatch(const BlobHeader& header, int layer, Part part, int64_t segment, KvDtype dtype,
                     const ProfileLayout& layout) {
  const PartLayout& expected = layout.part(layer, part);
  if (header.form != SegmentForm::kCompact) {
    return absl::StrCat("its form is ", FormName(header.form), ", not compact");
  }
  if (header.part != part) return absl::StrCat("it holds ", PartName(header.part));
  if (header.layer != static_cast<uint32_t>(layer)) {
    return absl::StrCat("it belongs to layer ", header.layer);
  }
  if (header.dtype != dtype) return "its element type is not the cache's";
  if (header.tokens != expected.segment_tokens || header.kv_heads != expected.kv_heads ||
      header.head_dim != expected.head_dim) {
    return absl::StrCat("it has ", header.tokens, " tokens of ", header.kv_heads, " heads of ",
                        header.head_dim, " channels; the profile has ", expected.segment_tokens,
                        " of ", expected.kv_heads, " of ", expected.head_dim);
  }
  if (!std::equal(header.profile_prefix.begin(), header.profile_prefix.end(),
                  layout.id().bytes.begin())) {
    return "it was encoded with another codec profile";
  }
  if (header.first_token != static_cast<uint64_t>(segment) * expected.segment_tokens) {
    return absl::StrCat("it starts at position ", header.first_token);
  }
  if (header.payload_bytes != static_cast<uint64_t>(expected.payload_bytes)) {
    return absl::StrCat("its payload has ", header.payload_bytes, " bytes; the profile's has ",
                        expected.payload_bytes);
  }
  return "";
}

}  // namespace

absl::StatusOr<std::span<const std::byte>> OpenCompactBlob(const ProfileLayout& layout,
                                                           KvDtype dtype, int layer, Part part,
                                                           int64_t segment,
                                                           float max_relative_error,
                                                           std::span<const std::byte> blob) {
  absl::StatusOr<BlobHeader> header = OpenBlob(blob);
  const auto where = [&] {
    return absl::StrCat(PartName(part), " of layer ", layer, " of segment ", segment, ": ");
  };
  if (!header.ok()) {
    return absl::Status(header.status().code(), absl::StrCat(where(), header.status().message()));
  }
  const std::string mismatch = Mismatch(*header, layer, part, segment, dtype, layout);
  if (!mismatch.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where(), "the blob does not fit: ", mismatch));
  }
  if (header->relative_error > max_relative_error) {
    return absl::InvalidArgumentError(absl::StrCat(
        where(), "its relative error ", header->relative_error, " is above ", max_relative_error));
  }
  const std::span<const std::byte> payload = BlobPayload(blob);
  if (absl::Status s = CheckPayload(layout.part(layer, part), payload); !s.ok()) {
    return absl::Status(s.code(), absl::StrCat(where(), s.message()));
  }
  return payload;
}

}  // namespace fourierkv
