// The bytes that puts send.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/loadtest/value_source.h"
#include "compute/backend/compute_backend.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv::loadtest {

// How many images there are of a segment that is sent encoded.
inline constexpr uint32_t kEncodedVariants = 4;

struct SegmentPlace {
  Digest key;
  int64_t index = 0;
  int tokens = 0;
};

// Thread safe. COMPACT and LOSSLESS payloads of every image are made in advance: at most
// kEncodedVariants times the dense bytes of a segment.
class PayloadMaker {
 public:
  // `form` EXACT, or LOSSLESS or COMPACT with a source that has variants, for full segments of
  // `segment_tokens`. `layout` may be null unless form is COMPACT. Both outlive it, as `values`.
  static absl::StatusOr<std::unique_ptr<PayloadMaker>> Create(const ValueSource* values,
                                                              SegmentForm form, int segment_tokens,
                                                              const ProfileLayout* layout,
                                                              ComputeBackend* backend);

  SegmentForm form() const { return form_; }

  // Replaces `out` by all that a put sends of one part: dense values, or a sealed blob.
  void Make(const SegmentPlace& segment, int layer, Part part, std::string* out) const {
    form_ == SegmentForm::kExact ? MakeExact(segment, layer, part, out)
                                 : MakeBlob(segment, layer, part, out);
  }
  // Dense values whatever the form is: segment 0 beside compact ones.
  void MakeExact(const SegmentPlace& segment, int layer, Part part, std::string* out) const;

 private:
  struct Encoded {
    std::vector<std::byte> payload;
    float relative_error = 0;
  };

  PayloadMaker(const ValueSource* values, SegmentForm form) : values_(values), form_(form) {}

  void MakeBlob(const SegmentPlace& segment, int layer, Part part, std::string* out) const;
  const Encoded& EncodedOf(uint32_t variant, int layer, Part part) const;

  const ValueSource* values_;
  const SegmentForm form_;
  Digest profile_id_;
  std::vector<Encoded> encoded_;  // [variant][layer][part]
};

}  // namespace fourierkv::loadtest
