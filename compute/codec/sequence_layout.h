// Where everything stands inside the compact payload of a whole sequence. docs/format.md has the
// same in words.

#pragma once

#include <cstdint>
#include <vector>

#include "compute/base/content_hash.h"
#include "compute/base/geometry.h"
#include "compute/codec/profile.h"
#include "compute/codec/sequence_scope.h"

namespace fourierkv {

// The channels of K or V of one head; either list may be empty.
struct SequenceHead {
  std::vector<uint16_t> spectral;
  std::vector<uint16_t> resident;
  int coefficient_bits = 32;  // 16 or 32
};

// The payload of K or V of one layer of a sequence of T tokens, n of them in the middle:
//
//   payload := u32 tokens T; u32 capacity; u32 n; u32 0
//              exact[kv_heads][T - n][head_dim]: 16-bit values as received, the sink's tokens, then
//                the recent ones; zeros up to a multiple of 16 bytes
//              head*                           only if n > 0
//   head    := rescale: f32 gain[f]; f32 shift[f]     only with peak_rescale
//              f32 or bf16 c[f][states]
//              bf16 x[r][n]
//              each of these padded with zeros to a multiple of 16 bytes
//
// with f spectral and r resident channels, in the order of SequenceHead. Spectral channel j decodes
// to gain[j] (B c[j]) + shift[j], gain 1 and shift 0 without peak_rescale.
inline constexpr int64_t kSequencePrefixBytes = 16;

struct SequencePart {
  // Byte offsets of one head's sections from the payload's start.
  struct HeadOffsets {
    int64_t gain = 0;  // and shift behind it
    int64_t coefficients = 0;
    int64_t residents = 0;
    int64_t end = 0;
  };

  KvGeometry geometry;
  SequenceScope scope;
  std::vector<SequenceHead> heads;

  // Requires 1 <= tokens <= kMaxSequenceTokens. The first section behind the exact tokens.
  int64_t HeadsOffset(int64_t tokens) const;
  // The sections of a head that starts at `start`, in a middle of `middle` tokens.
  HeadOffsets Place(int head, int64_t start, int64_t middle) const;
  int64_t PayloadBytes(int64_t tokens) const;
};

// All parts of a validated profile with `sequence`. Immutable; shared by threads and requests.
class SequenceLayout {
 public:
  explicit SequenceLayout(const CodecProfile& profile);
  SequenceLayout(const SequenceLayout&) = delete;
  SequenceLayout& operator=(const SequenceLayout&) = delete;

  const CodecProfile& profile() const { return profile_; }
  const SequenceScope& scope() const { return *profile_.sequence; }
  const Digest& id() const { return id_; }
  const SequencePart& part(int layer, Part part) const {
    return parts_[static_cast<size_t>(layer) * 2 + static_cast<size_t>(part)];
  }
  // Payload bytes of K and V of all layers.
  int64_t PayloadBytes(int64_t tokens) const;

 private:
  CodecProfile profile_;
  Digest id_;
  std::vector<SequencePart> parts_;
};

}  // namespace fourierkv
