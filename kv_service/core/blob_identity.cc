#include "kv_service/core/blob_identity.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/sequence_layout.h"

namespace fourierkv {
namespace {

constexpr uint16_t kMagnitudeBits = 0x7fff;

// Sign-free bits above which a value is refused. Larger magnitudes, infinity and NaN follow each
// other in this order, so one comparison of integers finds them all.
uint16_t LargestMagnitudeBits(KvDtype dtype) {
  return dtype == KvDtype::kBf16 ? FloatToBf16Down(kMaxMagnitude) : uint16_t{0x7bff};
}

template <typename T>
absl::Status CheckField(const char* field, const T& actual, const T& expected) {
  if (actual == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("blob header: ", field, " is ", actual, "; it must be ", expected));
}

int64_t MaxPayloadBytes(const StoredSegment& segment, SegmentForm form, int layer, Part part) {
  if (form == SegmentForm::kCompact) {
    if (const SequenceLayout* sequence = segment.context->sequence(); sequence != nullptr) {
      return sequence->part(layer, part).PayloadBytes(segment.tokens);
    }
    return segment.context->layout->part(layer, part).payload_bytes;
  }
  const int64_t dense = segment.context->ns.geometry.PartBytes(segment.tokens);
  return HasFixedSize(form) ? dense : dense + static_cast<int64_t>(kLosslessOverheadBytes);
}

}  // namespace

BlobHeader ExpectedHeader(const StoredSegment& segment, SegmentForm form, int layer, Part part,
                          float relative_error) {
  const CacheNamespace& ns = segment.context->ns;
  BlobHeader header;
  header.form = form;
  header.part = part;
  header.dtype = ns.kv_dtype;
  header.layer = static_cast<uint32_t>(layer);
  header.tokens = static_cast<uint32_t>(segment.tokens);
  header.kv_heads = static_cast<uint16_t>(ns.geometry.kv_heads);
  header.head_dim = static_cast<uint16_t>(ns.geometry.head_dim);
  header.relative_error = relative_error;
  header.payload_bytes = static_cast<uint64_t>(MaxPayloadBytes(segment, form, layer, part));
  header.block_key = segment.key;
  if (!IsExactData(form) && ns.profile_id.has_value()) {
    std::copy_n(ns.profile_id->bytes.begin(), header.profile_prefix.size(),
                header.profile_prefix.begin());
  }
  header.first_token = static_cast<uint64_t>(segment.first_token());
  return header;
}

absl::Status CheckHeader(const BlobHeader& header, const BlobHeader& expected) {
  using absl::string_view;
  if (header.form != expected.form) {
    return CheckField("form", string_view(FormName(header.form)),
                      string_view(FormName(expected.form)));
  }
  if (header.part != expected.part) {
    return CheckField("part", string_view(PartName(header.part)),
                      string_view(PartName(expected.part)));
  }
  if (header.block_key != expected.block_key) {
    return CheckField("block_key", header.block_key.ToHex(), expected.block_key.ToHex());
  }
  if (header.profile_prefix != expected.profile_prefix) {
    return absl::InvalidArgumentError(
        "blob header: profile_prefix is not that of the namespace's codec profile");
  }
  for (const absl::Status& s :
       {CheckField("dtype", static_cast<int>(header.dtype), static_cast<int>(expected.dtype)),
        CheckField("layer", header.layer, expected.layer),
        CheckField("tokens", header.tokens, expected.tokens),
        CheckField("kv_heads", header.kv_heads, expected.kv_heads),
        CheckField("head_dim", header.head_dim, expected.head_dim),
        CheckField("first_token", header.first_token, expected.first_token)}) {
    if (!s.ok()) return s;
  }
  if (HasFixedSize(header.form)) {
    return CheckField("payload_bytes", header.payload_bytes, expected.payload_bytes);
  }
  if (header.payload_bytes > expected.payload_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("blob header: payload_bytes is ",
                                                   header.payload_bytes, "; it must be at most ",
                                                   expected.payload_bytes));
  }
  return absl::OkStatus();
}

std::optional<int64_t> FirstBadValue(std::span<const uint16_t> values, KvDtype dtype) {
  // Four values at a time: with the sign cleared, adding `bias` carries into a lane's top bit
  // exactly if its value is beyond the limit, and never into the next lane.
  constexpr uint64_t kLanes = 0x0001'0001'0001'0001;
  constexpr size_t kBlock = 1024;  // looked at without branches; a bad one again, value by value
  const uint16_t limit = LargestMagnitudeBits(dtype);
  const uint64_t bias = kLanes * (kMagnitudeBits - limit);
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t end = std::min(values.size(), begin + kBlock);
    uint64_t beyond = 0;
    size_t i = begin;
    for (; i + 4 <= end; i += 4) {
      uint64_t four;
      std::memcpy(&four, &values[i], sizeof four);
      beyond |= (four & (kLanes * kMagnitudeBits)) + bias;
    }
    bool bad = (beyond & (kLanes << 15)) != 0;
    for (; i < end; ++i) bad |= (values[i] & kMagnitudeBits) > limit;
    if (!bad) continue;
    for (i = begin; i < end; ++i) {
      if ((values[i] & kMagnitudeBits) > limit) return static_cast<int64_t>(i);
    }
  }
  return std::nullopt;
}

}  // namespace fourierkv
