// Products with the rotation of a head (compute/codec/rotation.h).

#pragma once

#include <cstdint>

#include "compute/backend/cpu/scratch_arena.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv::cpu {

// to = from U and to = from U^T, for `rows` rows of head_dim floats that stand `stride` apart. The
// ranges must not overlap. u: [head_dim][head_dim].
void RotateRows(const float* u, int head_dim, int64_t rows, const float* from, int64_t from_stride,
                float* to, int64_t to_stride);
void RotateRowsBack(const float* u, int head_dim, int64_t rows, const float* from,
                    int64_t from_stride, float* to, int64_t to_stride);

// Decodes a head (kernels.h) and turns it back if it is rotated: [S][stride] in the arena.
float* DecodeHeadRotatedBack(const PartLayout& layout, int head, const std::byte* payload,
                             int64_t stride, ScratchArena& arena);

}  // namespace fourierkv::cpu
