// What encoding a layer's part needs beside its results: the basis as tensor core operands, and
// what every tile found out until the last of a segment's tiles makes its report.

#pragma once

#include <climits>
#include <cstdint>

#include "kernels/encode_residents.cuh"
#include "kernels/encode_segments.h"
#include "kernels/encode_spectral.cuh"

namespace fourierkv::kernels::codec {

// Of a slice of a head of a segment.
struct TilePartial {
  double energy;
  double error;
  int32_t refused;  // (head * S + token) * head_dim + channel of the first bad value, or kNone
};
constexpr int32_t kNone = INT_MAX;
constexpr float kLargestMagnitude = 1e30f;

struct EncodeWorkspace {
  uint4* basis;  // [groups][S / 16][32]: BasisOperands
  // U of rotated heads in units of 1 / 32767, columns in the order of the bands:
  int16_t* columns;  // [kv_heads][head_dim][head_dim]
  // and as tensor core operands: a multiple of 256 and the rest, 16 rows (a step) by one column
  // each;
  uint4* rotations;       // [kv_heads][ceil(head_dim / 16)][head_dim][4]
  uint32_t* finished;     // [segments]: tiles
  TilePartial* partials;  // [segments][kv_heads][slices]
  int32_t groups;         // of 8 columns of the basis
  int32_t slices;         // of a head's channels
  int64_t bytes;
};

// Sums over the block, for the last warp only. Threads must not have anything to read from `sums`
// any more.
__device__ __forceinline__ void SumTotals(Totals* totals, double (&sums)[2 * kWarps]) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  for (int distance = 16; distance > 0; distance /= 2) {
    totals->energy += __shfl_xor_sync(0xffffffffu, totals->energy, distance);
    totals->error += __shfl_xor_sync(0xffffffffu, totals->error, distance);
  }
  if (lane == 0) {
    sums[warp] = totals->energy;
    sums[kWarps + warp] = totals->error;
  }
  __syncthreads();
  if (warp != kWarps - 1) return;
  totals->energy = lane < kWarps ? sums[lane] : 0;
  totals->error = lane < kWarps ? sums[kWarps + lane] : 0;
  for (int distance = kWarps / 2; distance > 0; distance /= 2) {
    totals->energy += __shfl_xor_sync(0xffffffffu, totals->energy, distance);
    totals->error += __shfl_xor_sync(0xffffffffu, totals->error, distance);
  }
}

// Hands in what tile `slice` of a head found, as `tiles` of them; the last of the segment's makes
// the report, in an order that does not depend on which is last. By one warp.
__device__ __forceinline__ void HandIn(const EncodeSegmentsParams& params,
                                       const EncodeWorkspace& workspace, int segment, int head,
                                       int slice, int tiles, const TilePartial& partial) {
  const PartView& part = params.part;
  const int lane = threadIdx.x % 32;
  const int all = part.kv_heads * workspace.slices;
  TilePartial* const partials = workspace.partials + static_cast<int64_t>(segment) * all;
  uint32_t before = 0;
  if (lane == 0) {
    partials[head * workspace.slices + slice] = partial;
    for (int i = 1; i < tiles; ++i) partials[head * workspace.slices + i] = {0, 0, kNone};
    // Releases what this thread wrote, and acquires what those before it did.
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(workspace.finished + segment), "r"(tiles)
                 : "memory");
  }
  __syncwarp();
  before = __shfl_sync(0xffffffffu, before, 0);
  if (before + tiles != all) return;
  double energy = 0;
  double error = 0;
  int32_t refused = kNone;
  for (int i = lane; i < all; i += 32) {
    const volatile TilePartial& found = partials[i];
    energy += found.energy;
    error += found.error;
    refused = min(refused, found.refused);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    energy += __shfl_xor_sync(0xffffffffu, energy, distance);
    error += __shfl_xor_sync(0xffffffffu, error, distance);
  }
  refused = __reduce_min_sync(0xffffffffu, refused);
  if (lane != 0) return;
  EncodeReport report = {};
  if (refused != kNone) {
    report.refused = 1;
    report.channel = refused % part.head_dim;
    report.token = refused / part.head_dim % part.segment_tokens;
    report.head = refused / part.head_dim / part.segment_tokens;
  } else if (energy > 0) {
    report.relative_error = static_cast<float>(sqrt(fmax(error, 0.0) / energy));
  }
  params.reports[segment] = report;
}

// Encodes the rotated heads; LaunchEncodeSegments has checked `params` and prepared `workspace`.
cudaError_t LaunchEncodeRotated(const EncodeSegmentsParams& params,
                                const EncodeWorkspace& workspace, cudaStream_t stream);

}  // namespace fourierkv::kernels::codec
