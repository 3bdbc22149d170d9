// How chunks of residents come into shared memory: rows of a channel each, cut into pieces of 16
// bytes, whose places are permuted so that lanes read without bank conflicts.

#pragma once

#include <cstdint>

#include "kernels/attention_program.h"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// Segment length as the kernel knows it: at compile time if kLogS is not 0.
template <int kLogS>
struct SegmentShape {
  int log_tokens;

  __device__ __forceinline__ int log_s() const { return kLogS != 0 ? kLogS : log_tokens; }
  __device__ __forceinline__ int log_stride() const { return log_s() - 3; }  // of P = S / 8
  // Log of 16-byte pieces ("quads" of words) in a channel's row of `plane` = 1, 2 or 4 bits.
  __device__ __forceinline__ int log_quads(int plane) const {
    return log_s() - (plane == 4 ? 5 : plane == 2 ? 6 : 7);
  }
  __device__ __forceinline__ bool half_unit() const { return log_s() == 7; }
};

// Which piece of its row stands where piece `piece` would: keys are read by 4 rows x 2 pieces at
// once, values by 2 rows x 4 pieces.
__device__ __forceinline__ int WordSwizzle(bool values, int row) {
  return values ? row & 1 : (row & 3) << 1;
}
__device__ __forceinline__ int ByteSwizzle(int row) { return (row & 3) << 1; }
__device__ __forceinline__ int HalfSwizzle(bool values, int row) {
  return values ? (row & 1) << 2 : (row & 3) << 1;
}

// Rows lane / 8 + 4 i < valid; `pitch` between the rows of the source.
__device__ __forceinline__ void CopyRows(uint32_t to, const uint8_t* from, int pitch, int valid,
                                         int lane) {
  if (valid == kChunk) {
#pragma unroll
    for (int i = 0; i < 4; ++i) CopyAsync16(to + i * 512, from + 4 * i * pitch);
  } else {
    // What is no channel becomes zero, lest it be read as NaN.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool zeros = (lane >> 3) + 4 * i >= valid;
      CopyAsync16(to + i * 512, zeros ? from : from + 4 * i * pitch, zeros);
    }
  }
}

// The pieces that unit `unit` needs of a plane of 1, 2 or 4 bits: at most 8 of each row.
__device__ __forceinline__ void CopyPlane(bool values, uint32_t slot, const uint8_t* source,
                                          int log_quads, int unit, int valid, int lane) {
  const int log = min(log_quads, 3);
  const int row = lane >> log;
  const int piece = lane & ((1 << log) - 1);
  const int first = (8 * unit) & ((1 << log_quads) - 1);
  const int place = piece ^ (WordSwizzle(values, row) & ((1 << log) - 1));
  const uint8_t* from = source + (((row << log_quads) + first + piece) << 4);
  const uint32_t to = slot + (row << (log + 4)) + (place << 4);
  if (log == 3) return CopyRows(to, from, 16 << log_quads, valid, lane);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int rows = i << (5 - log);
    if (row + rows < valid) CopyAsync16(to + i * 512, from + (rows << (log_quads + 4)));
  }
}

// Which k the run `run` of 32 tokens of a step with 8 or 16 bits is. Keys take neighbours, as rows
// r and r + 8 of a tile; values k and k + 4, as pairs.
__device__ __forceinline__ int RunOfBytes(bool values, int step_run, int run) {
  return values ? 2 * step_run + (run & 1) + 4 * (run >> 1) : 4 * step_run + run;
}
__device__ __forceinline__ int RunOfHalves(bool values, int step_run, int run) {
  return values ? step_run + 4 * run : 2 * step_run + run;
}

template <int kLogS>
__device__ __forceinline__ void CopyBytes(bool values, uint32_t slot, const Step& step,
                                          const uint8_t* source, SegmentShape<kLogS> shape,
                                          int unit, int lane) {
  const int row = lane >> 3;
  const int piece = lane & 7;
  const int k = RunOfBytes(values, step.run, piece >> 1);
  const int token =
      (k << shape.log_stride()) + 32 * unit + (shape.half_unit() ? 0 : 16 * (piece & 1));
  CopyRows(slot + row * 128 + ((piece ^ ByteSwizzle(row)) << 4),
           source + (row << shape.log_s()) + token, 1 << shape.log_s(), step.valid, lane);
}

template <int kLogS>
__device__ __forceinline__ void CopyHalves(bool values, uint32_t slot, const Step& step,
                                           const uint8_t* source, SegmentShape<kLogS> shape,
                                           int unit, int lane) {
  const int row = lane >> 3;
  const int piece = lane & 7;
  const int k = RunOfHalves(values, step.run, piece >> 2);
  const int inner = shape.half_unit() ? piece & 1 : piece & 3;
  const int token = (k << shape.log_stride()) + 32 * unit + 8 * inner;
  CopyRows(slot + row * 128 + ((piece ^ HalfSwizzle(values, row)) << 4),
           source + (((row << shape.log_s()) + token) << 1), 2 << shape.log_s(), step.valid, lane);
}

// Starts the copy of a step of residents.
template <int kLogS>
__device__ __forceinline__ void CopyResident(bool values, uint32_t slot, const Step& step,
                                             const uint8_t* payload, SegmentShape<kLogS> shape,
                                             int unit, int lane) {
  const uint8_t* source = payload + step.source;
  if (step.kind == 4) {
    CopyPlane(values, slot, source, shape.log_quads(4), unit, step.valid, lane);
  } else if (step.kind == 16) {
    CopyHalves(values, slot, step, source, shape, unit, lane);
  } else if (step.kind == 8) {
    CopyBytes(values, slot, step, source, shape, unit, lane);
  } else {
    const int log = shape.log_quads(2);
    CopyPlane(values, slot, source, log, unit, step.valid, lane);
    if (step.kind == 3) {
      CopyPlane(values, slot + (kChunk << (min(log, 3) + 4)), payload + step.high,
                shape.log_quads(1), unit, step.valid, lane);
    }
  }
}

__device__ __forceinline__ void CopySmall(uint32_t target, const uint8_t* payload,
                                          const SmallCopy* copies, int count, int lane) {
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    const SmallCopy copy = copies[n];
#pragma unroll 1
    for (int at = lane * 16; at < copy.bytes; at += 512) {
      CopyAsync16(target + copy.target + at, payload + copy.source + at);
    }
  }
}

// Four words of a row that CopyPlane brought: quad `quad` of the row, counted from its start.
template <bool kValues>
__device__ __forceinline__ uint4 LoadQuad(const uint8_t* slot, int row, int quad, int log_quads) {
  const int log = min(log_quads, 3);
  const int place = (quad ^ WordSwizzle(kValues, row)) & ((1 << log) - 1);
  return *reinterpret_cast<const uint4*>(slot + (row << (log + 4)) + (place << 4));
}

__device__ __forceinline__ uint32_t Component(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// The quad's words with what belongs to this unit in every nibble: 4-bit words as they are, planes
// of 2 and 3 bits shifted and merged (docs/format.md, section 2). Two bits above those of 2-bit
// values are not cleared.
template <bool kValues, int kBits, int kLogS>
__device__ __forceinline__ uint4 LoadNibbles(const uint8_t* slot, SegmentShape<kLogS> shape,
                                             int row, int quad) {
  if (kBits == 4) return LoadQuad<kValues>(slot, row, quad, shape.log_quads(4));
  const int log_low = shape.log_quads(2);
  uint4 low = LoadQuad<kValues>(slot, row, quad, log_low);
  const int low_shift = 2 * (quad >> log_low);
  low.x >>= low_shift;
  low.y >>= low_shift;
  low.z >>= low_shift;
  low.w >>= low_shift;
  if (kBits == 2) return low;
  const int log_high = shape.log_quads(1);
  const uint8_t* high_slot = slot + (kChunk << (min(log_low, 3) + 4));
  const uint4 high = LoadQuad<kValues>(high_slot, row, quad, log_high);
  const int high_shift = quad >> log_high;
  const auto merge = [&](uint32_t a, uint32_t b) {
    return (a & 0x33333333u) | (((b >> high_shift) & 0x11111111u) << 2);
  };
  return {merge(low.x, high.x), merge(low.y, high.y), merge(low.z, high.z), merge(low.w, high.w)};
}

}  // namespace fourierkv::kernels
