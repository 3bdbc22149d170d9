// The part of a codec profile that archived segments need: how every head is transformed, quantised
// and entropy coded. The codec itself: archive_codec.h; its mathematics: docs/math.md.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "compute/base/geometry.h"

namespace fourierkv {

// Tokens of one DCT; segments hold a whole number of them.
inline constexpr int kArchiveBlock = 64;
// Frequencies of a block fall into octaves: 0, 1, 2-3, 4-7, 8-15, 16-31, 32-63.
inline constexpr int kArchiveOctaves = 7;
// How strong an octave of a channel is expected to be: from practically never nonzero to strong.
inline constexpr int kArchiveClasses = 32;

// K or V of one head. The values x [D] of a token, K before RoPE, become
//   y = ((x - mean) * scale) U / step         (elementwise, matrix product, elementwise)
// of which blocks of 64 tokens are transformed by the DCT along time and rounded to integers.
struct ArchiveHead {
  // U as HeadProfile::rotation. Empty: that of the head's compact form, or the identity if that has
  // none either.
  std::vector<int16_t> rotation;
  std::vector<uint16_t> mean;   // [D] bf16; finite, within +-2^20
  std::vector<uint16_t> scale;  // [D] bf16, from 2^-20 to 2^20; empty: all 1
  std::vector<uint16_t> step;   // [D] bf16, from 2^-20 to 2^20
  // [D][kArchiveOctaves], each below kArchiveClasses.
  std::vector<uint8_t> classes;

  bool operator==(const ArchiveHead&) const = default;
};

struct ArchiveProfile {
  // Of RoPE, in radians per token: [D/2], in the rotate-half form (channels d and d + D/2 turn
  // together). From 0 to 4.
  std::vector<double> rope_frequencies;
  // A quotient x is rounded towards 0 where its fraction is below 1 - rounding / 256: 128 is the
  // nearest integer, less makes small values 0, which costs fewer bits than it costs accuracy.
  int rounding = 128;  // 1 to 128
  // Initial probabilities of the entropy coder (archive_symbols.h).
  std::vector<uint16_t> probabilities;
  std::vector<ArchiveHead> heads;  // index: (layer * kv_heads + head) * 2 + part

  const ArchiveHead& head(const KvGeometry& geometry, int layer, int head, Part part) const {
    return heads[(static_cast<size_t>(layer) * geometry.kv_heads + head) * 2 +
                 static_cast<size_t>(part)];
  }

  bool operator==(const ArchiveProfile&) const = default;

  // InvalidArgument naming the field at fault, e.g. "archive.layers[3].k[1].step[17]: ...".
  absl::Status Validate(const KvGeometry& geometry) const;
};

}  // namespace fourierkv
