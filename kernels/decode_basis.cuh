// The basis as operands of tensor cores that decode: rows are tokens, split in three terms of bf16
// whose sum has every bit of a float.

#pragma once

#include <cstdint>

#include "kernels/codec_values.cuh"
#include "kernels/segment_view.h"

namespace fourierkv::kernels::codec {

// Which token is number k (0 to 7) of those that a lane decodes together, for i from 0 to S / 8:
// those of a word of 4-bit integers, or neighbours.
struct TokenOrder {
  int32_t of_i;
  int32_t of_k;

  __device__ __forceinline__ TokenOrder(bool words, int segment_tokens)
      : of_i(words ? 1 : 8), of_k(words ? segment_tokens / 8 : 1) {}
  __device__ __forceinline__ int Token(int i, int k) const { return i * of_i + k * of_k; }
};

// A lane's operand: 16 rows by a group of 8 columns of the basis times sqrt(S), which makes the
// constant column 1. Rows r and r + 8 are tokens `near` and `far`.
struct BasisRows {
  uint4 leading;   // first terms of both rows, then second terms: columns 2 c, 2 c + 1 each
  uint2 trailing;  // third terms

  // d += rows times coefficients 2 c, 2 c + 1 of column r.
  __device__ __forceinline__ void Multiply(float (&d)[4], uint32_t coefficients) const {
    MmaBf16(d, leading.x, leading.y, leading.z, leading.w, coefficients, coefficients);
    MmaBf16K8(d, trailing.x, trailing.y, coefficients);
  }
};

__device__ __forceinline__ BasisRows MakeBasisRows(const PartView& part, int lane, int group,
                                                   int near, int far) {
  const float root = sqrtf(static_cast<float>(part.segment_tokens));
  const int m = 8 * group + 2 * (lane % 4);
  const float* const even = part.basis + m * part.segment_tokens;
  const float* const odd = even + part.segment_tokens;
  float values[4] = {};
  if (m < part.columns) {
    values[0] = __ldg(even + near) * root;
    values[2] = __ldg(even + far) * root;
  }
  if (m + 1 < part.columns) {
    values[1] = __ldg(odd + near) * root;
    values[3] = __ldg(odd + far) * root;
  }
  const SplitPair<ElementType::kBf16> one(values[0], values[1]);
  const SplitPair<ElementType::kBf16> other(values[2], values[3]);
  return {{one.high, other.high, one.middle, other.middle}, {one.low, other.low}};
}

// All operands of the basis in shared memory: 16 rows after 16 rows, 4 for every 8 values of i, of
// a group of columns, then the next group; lane after lane.
struct BasisTable {
  uint4* leading;
  uint2* trailing;

  __device__ __forceinline__ BasisRows Read(int i) const { return {leading[i], trailing[i]}; }
};

// Fills the first `entries`, by the whole block; they count after a barrier.
__device__ __forceinline__ void FillTable(const PartView& part, int entries,
                                          const TokenOrder& order, const BasisTable& table) {
  const int of_group = part.segment_tokens / 16 * 32;
  for (int at = static_cast<int>(threadIdx.x); at < entries; at += static_cast<int>(blockDim.x)) {
    const int lane = at % 32;
    const int rows = at % of_group / 32;
    const int i = rows / 4 * 8 + lane / 4;
    const int k = rows % 4 * 2;
    const BasisRows made =
        MakeBasisRows(part, lane, at / of_group, order.Token(i, k), order.Token(i, k + 1));
    table.leading[at] = made.leading;
    table.trailing[at] = made.trailing;
  }
}

}  // namespace fourierkv::kernels::codec
