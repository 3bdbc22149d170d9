// Archived segments: the form for cold data, ten times and more smaller than compact ones, which
// attention cannot read. Byte form: docs/format.md. Mathematics: docs/math.md.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/codec/archive_symbols.h"
#include "compute/codec/archive_transform.h"
#include "compute/codec/profile.h"

namespace fourierkv {

struct ArchivedPart {
  std::vector<std::byte> payload;  // at least 1 byte, and fewer than the dense part has
  float relative_error = 0;        // ||X - X^||_F / ||X||_F over all heads, 0 if X is 0
};

// Encodes and decodes K or V of one layer of one segment. Immutable: any number of threads may use
// one codec. Each works on its own parts, one core per call.
class ArchiveCodec {
 public:
  // FailedPrecondition if the profile, which must be valid, has no archive section.
  static absl::StatusOr<std::unique_ptr<const ArchiveCodec>> Create(const CodecProfile& profile);

  // dense: [kv_heads][S][head_dim]; K after RoPE at positions from `first_token`.
  // InvalidArgument for another size or values that are not finite or beyond 1e30; OutOfRange for
  // a part so far from what the profile was made for that its integers do not fit 16 bits or its
  // payload is no smaller than `dense`: it must be kept in another form.
  absl::StatusOr<ArchivedPart> Encode(int layer, Part part, KvDtype dtype, int64_t first_token,
                                      std::span<const uint16_t> dense) const;

  // The inverse, to the same layout. DataLoss if `payload` is not what Encode made.
  absl::Status Decode(int layer, Part part, KvDtype dtype, int64_t first_token,
                      std::span<const std::byte> payload, std::span<uint16_t> dense) const;

  // Whether DecodeRotated leaves a head in its rotated channels: V whose archive has no scales and
  // shares the rotation of the compact form.
  bool SharesRotation(int layer, int head, Part part) const {
    return shares_rotation_[HeadIndex(layer, head, part)];
  }

  // Decode for an encoder of the compact form: heads that share its rotation as X U, the others as
  // X. In bf16 whatever a cache's dtype, for the bounds of fp16 are those of X. What comes out is
  // encoded with ProfileLayout::rotated_part.
  absl::Status DecodeRotated(int layer, Part part, int64_t first_token,
                             std::span<const std::byte> payload, std::span<uint16_t> dense) const;

  // The integers of a payload: [kv_heads][head_dim][S], frequencies of each block innermost.
  absl::StatusOr<std::vector<int16_t>> DecodeSymbols(int layer, Part part,
                                                     std::span<const std::byte> payload) const;

  // Calls use(transform, h, x) for every head h of a part, x [S][head_dim] as float and K before
  // RoPE. Errors as Encode's, and those of `use`.
  absl::Status ForEachHead(
      int layer, Part part, KvDtype dtype, int64_t first_token, std::span<const uint16_t> dense,
      absl::FunctionRef<absl::Status(const ArchiveTransform&, int, std::span<const float>)> use)
      const;

  // Its classes are the codec's own.
  ArchiveSymbolShape Shape(int layer, Part part) const;

  const KvGeometry& geometry() const { return geometry_; }
  int segment_tokens() const { return tokens_; }
  const ArchiveTransform& transform(int layer, int head, Part part) const {
    return transforms_[HeadIndex(layer, head, part)];
  }
  const RopeTables& rope() const { return rope_; }

 private:
  explicit ArchiveCodec(const CodecProfile& profile);

  size_t PartSize() const {
    return static_cast<size_t>(geometry_.kv_heads) * geometry_.head_dim * tokens_;
  }
  size_t HeadIndex(int layer, int head, Part part) const {
    return (static_cast<size_t>(layer) * geometry_.kv_heads + head) * 2 + static_cast<size_t>(part);
  }
  std::span<const uint16_t> Probabilities(Part part) const;
  absl::Status DecodeHeads(int layer, Part part, KvDtype dtype, int64_t first_token, bool rotated,
                           std::span<const std::byte> payload, std::span<uint16_t> dense) const;

  KvGeometry geometry_;
  int tokens_;
  float rounding_;
  RopeTables rope_;
  std::vector<ArchiveTransform> transforms_;   // as CodecProfile::heads
  std::vector<bool> shares_rotation_;          // as transforms_
  std::vector<std::vector<uint8_t>> classes_;  // [layer * 2 + part]: of all heads
  std::vector<uint16_t> probabilities_;        // of K, then of V
};

}  // namespace fourierkv
