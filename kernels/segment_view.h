// Compact segments as device code sees them: plain pointers and integers, no other library. Mirrors
// compute/codec/segment_layout.h; byte layout: docs/format.md.

#pragma once

#include <cstdint>

namespace fourierkv::kernels {

// What 16-bit values of exact tokens are.
enum class ElementType : int32_t { kBf16 = 1, kFp16 = 2 };

// Channels of one head that share a representation. Offsets are bytes from the start of the
// payload, within what belongs to the head.
struct BandView {
  int32_t coefficients;  // M; 0 for resident bands
  int32_t bits;          // 8 or 16 for spectral; 2, 3, 4, 8 or 16 for resident
  int32_t size;          // n channels
  int32_t channels;      // index of the first of n ids in PartView::channels
  int64_t scale_offset;  // not with 16 bits
  int64_t zero_offset;   // resident 2 to 8 bits only
  int64_t data_offset;
  int64_t high_offset;  // the upper bits; resident 3 bits only
};

// K or V of one layer: what all its segments have in common. All pointers are to device memory.
struct PartView {
  int32_t kv_heads;
  int32_t head_dim;           // a multiple of 8
  int32_t segment_tokens;     // S: 128, 256, 512 or 1024
  int32_t columns;            // M of the basis
  const float* basis;         // [columns][S]
  const BandView* bands;      // of head 0, then head 1, ...
  const int32_t* head_bands;  // [kv_heads + 1]: bands of head h are head_bands[h] .. [h + 1]
  const uint16_t* channels;   // channel ids that bands refer to: [kv_heads][head_dim]
  // [kv_heads + 1]: bytes of a payload that belong to head h are head_offsets[h] .. [h + 1], both
  // multiples of 16.
  const int64_t* head_offsets;
  int64_t most_head_bytes;  // of these
  // [kv_heads]: U of the head, row-major [head_dim][head_dim], or null where a head is not rotated;
  // null if no head is. Bands then hold columns of X U.
  const float* const* rotations;
};

}  // namespace fourierkv::kernels
