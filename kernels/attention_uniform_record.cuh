// How outputs of uniform heads stand in shared memory and in records.

#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/attention_program.h"

namespace fourierkv::kernels {

inline constexpr int kTileHeads = 4;  // heads that are worked on at once

// A part as it stands in a plan.
__device__ __forceinline__ UniformPart LoadPart(const UniformPart* from) {
  UniformPart part;
  const auto* const words = reinterpret_cast<const unsigned long long*>(from);
  unsigned long long loaded[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) loaded[i] = __ldg(words + i);
  memcpy(&part, loaded, sizeof(part));
  return part;
}

// Outputs of a warp and four heads, in shared memory, f32: of coefficients [32 channels][lane]:
// channels 4 r .. 4 r + 3 of head c; behind them of residents [chunk][lane]: channels r, r + 8.
struct UniformOutputs {
  __device__ __forceinline__ static int ResidentFloats(const UniformPart& part) {
    return 128 * ((part.chunks + 1) / 2);
  }
  __device__ __forceinline__ static int Floats(const UniformPart& part) {
    return ResidentFloats(part) + 64 * part.resident_chunks;
  }
  // The heads of the first and the last two of floats 4 item .. 4 item + 3.
  __device__ __forceinline__ static int2 HeadsOf(const UniformPart& part, int item) {
    if (4 * item < ResidentFloats(part)) return {item & 3, item & 3};
    return {(2 * item) & 3, (2 * item + 1) & 3};
  }
  // Which of the 16 channel slots of V's chunks float 4 item + i is of; -1: none.
  __device__ __forceinline__ static int SlotOf(const UniformPart& part, int item, int i) {
    if (4 * item < ResidentFloats(part)) {
      const int slot = 32 * (item >> 5) + 4 * ((item >> 2) & 7) + i;
      return slot < kChunk * part.chunks ? slot : -1;
    }
    const int pair = 2 * item - ResidentFloats(part) / 2 + i / 2;  // of a lane: channels r, r + 8
    return kChunk * (part.chunks + (pair >> 5)) + ((pair >> 2) & 7) + 8 * (i & 1);
  }
};

}  // namespace fourierkv::kernels
