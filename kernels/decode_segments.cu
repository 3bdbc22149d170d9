// Decoding: a warp makes 32 channels of a head of a segment, 64 tokens at a time, and stores them
// from registers. Spectral channels are products on tensor cores, resident ones packed
// multiply-adds on top of them. Warps share tables, but never wait for each other.

#include <algorithm>

#include "kernels/decode_basis.cuh"
#include "kernels/decode_channels.cuh"
#include "kernels/decode_residents.cuh"
#include "kernels/decode_rotated.cuh"
#include "kernels/decode_segments.h"
#include "kernels/slice_bands.cuh"

namespace fourierkv::kernels {
namespace codec {
namespace {

constexpr int kDecodeWarps = 8;
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kWidth = 32;         // channels of a warp
constexpr int kTokensAtOnce = 64;  // of a warp: 8 of each of 8 rows of operands

// What is in a block's shared memory: the basis, what every warp knows of its channels, and the
// places of all channels.
struct DecodeSizes {
  int32_t table_entries;  // 0 if operands are made when they are needed
  int32_t stage_bytes;    // of a warp's DecodedChannels
};

// Spectral channels, and bases of the others, of tokens (i, 4 half to 4 half + 3) for
// i = 8 * step + r. `own` are the lane's coefficients of the first group, number 8 j on.
template <ElementType kType, bool kOneGroup>
__device__ __forceinline__ void MultiplyBasis(const PartView& part, const DecodeSizes& sizes,
                                              const BasisTable& table, const TokenOrder& order,
                                              int step, int half, int groups,
                                              const LaneChannels& channels, const uint32_t* own,
                                              uint32_t (&out)[4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    const int rows = 4 * step + 2 * half + k / 2;
    float sum[4][4] = {};
    if constexpr (kOneGroup) {
      const BasisRows basis = table.Read(32 * rows + lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) basis.Multiply(sum[j], own[32 * j]);
    } else {
      const int i = 8 * step + lane / 4;
      for (int g = 0; g < groups; ++g) {
        const BasisRows basis =
            sizes.table_entries > 0
                ? table.Read((g * (part.segment_tokens / 16) + rows) * 32 + lane)
                : MakeBasisRows(part, lane, g, order.Token(i, 4 * half + k),
                                order.Token(i, 4 * half + k + 1));
#pragma unroll
        for (int j = 0; j < 4; ++j) basis.Multiply(sum[j], own[128 * g + 32 * j]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float f[2] = {channels.factor[2 * j], channels.factor[2 * j + 1]};
      const float b[2] = {channels.base[2 * j], channels.base[2 * j + 1]};
      out[k][j] = Element<kType>::Round(fmaf(sum[j][0], f[0], b[0]), fmaf(sum[j][1], f[1], b[1]));
      out[k + 1][j] =
          Element<kType>::Round(fmaf(sum[j][2], f[0], b[0]), fmaf(sum[j][3], f[1], b[1]));
    }
  }
}

// The work of a warp: 32 channels, `slice`, of a segment.
struct DecodeTask {
  int segment;
  int slice;

  // Number `turn` of the block's. Which channels a warp has varies, since they are not the same
  // work.
  __device__ __forceinline__ DecodeTask(const PartView& part, int slices, int turn) {
    const int of_head = static_cast<int>(gridDim.x) / part.kv_heads;  // blocks
    segment = static_cast<int>(blockIdx.x) / part.kv_heads + turn / slices * of_head;
    slice = (kDecodeWarps % slices == 0 ? turn + turn / kDecodeWarps : turn) % slices;
  }
};

// kOneGroup: no more than 8 columns of the basis, whose operands are in the table.
template <ElementType kType, bool kOneGroup>
__global__ __launch_bounds__(kDecodeThreads, 2) void DecodeKernel(DecodeSegmentsParams params,
                                                                  DecodeSizes sizes) {
  extern __shared__ uint4 shared[];
  const PartView& part = params.part;
  const int tokens = part.segment_tokens;
  const int d = part.head_dim;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head = static_cast<int>(blockIdx.x) % part.kv_heads;
  if (RotationOf(part, head) != nullptr) return;

  const BasisTable table = {shared, reinterpret_cast<uint2*>(shared + sizes.table_entries)};
  auto* const stages = reinterpret_cast<uint8_t*>(table.trailing + sizes.table_entries);
  auto* const stage = reinterpret_cast<DecodedChannels*>(stages + warp * sizes.stage_bytes);
  auto* const places = reinterpret_cast<ChannelPlace*>(stages + kDecodeWarps * sizes.stage_bytes);
  FindPlaces(part, head, places);
  __syncthreads();
  bool any = false;
  for (int channel = static_cast<int>(threadIdx.x); channel < d; channel += kDecodeThreads) {
    any |= places[channel].coefficients == 0 && places[channel].bits <= 4;
  }
  const TokenOrder order(__syncthreads_or(any) != 0, tokens);
  FillTable(part, sizes.table_entries, order, table);
  __syncthreads();
  const float unit = 1.0f / sqrtf(static_cast<float>(tokens));

  const int slices = (d + kWidth - 1) / kWidth;
  int turn = warp;
  DecodeTask task(part, slices, turn);
  if (task.segment >= params.segments) return;
  const uint8_t* payload = params.payloads[task.segment];
  while (true) {
    turn += kDecodeWarps;
    const DecodeTask next(part, slices, turn);
    const bool more = next.segment < params.segments;
    const uint8_t* const next_payload = params.payloads[more ? next.segment : task.segment];
    const int first = task.slice * kWidth;
    const int mine = first + 8 * (lane % 4);
    uint16_t* const to = params.dense[task.segment] + head * params.head_stride + mine;
    const ChannelPlace* const at = places + first;
    const ChannelKinds kinds = LoadChannels(at, d - first, unit, payload, stage);
    const LaneChannels channels(*stage);
    const uint32_t* const own = reinterpret_cast<const uint32_t*>(stage->coefficients) + lane;
#pragma unroll 1
    for (int step = 0; step < tokens / kTokensAtOnce; ++step) {
      const int i = 8 * step + lane / 4;
      WordCodes words[8];
      if (kinds.words != 0) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int channel = 8 * (lane % 4) + e;
          if ((kinds.words >> channel & 1u) != 0) {
            words[e].Load(at[channel], tokens, i, kinds.narrow, payload);
          }
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t out[4][4];
        if (kinds.spectral != 0) {
          MultiplyBasis<kType, kOneGroup>(part, sizes, table, order, step, half, kinds.groups,
                                          channels, own, out);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const uint32_t base =
                Element<kType>::Round(channels.base[2 * j], channels.base[2 * j + 1]);
#pragma unroll
            for (int k = 0; k < 4; ++k) out[k][j] = base;
          }
        }
        if (kinds.words != 0) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            uint32_t pairs[4];
            WordCodes::Unpack(words[2 * j], words[2 * j + 1], half, pairs);
            AddPair<kType>(pairs, kinds.words, j, channels, out);
          }
        }
        AddResidents<ByteCodes, kType>(at, kinds.bytes, channels, order, i, half, payload, out);
        AddResidents<ValueCodes, kType>(at, kinds.values, channels, order, i, half, payload, out);
        if (mine >= d) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          *reinterpret_cast<uint4*>(to + order.Token(i, 4 * half + k) * d) = {out[k][0], out[k][1],
                                                                              out[k][2], out[k][3]};
        }
      }
    }
    if (!more) return;
    task = next;
    payload = next_payload;
  }
}

template <typename T>
bool Aligned(const T* pointer, uintptr_t bytes) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

bool Valid(const DecodeSegmentsParams& params) {
  const PartView& part = params.part;
  const int s = part.segment_tokens;
  return params.segments >= 1 && params.segments <= 65535 && part.kv_heads >= 1 &&
         part.kv_heads <= 256 && part.head_dim >= 8 && part.head_dim <= 512 &&
         part.head_dim % 8 == 0 && (s == 128 || s == 256 || s == 512 || s == 1024) &&
         part.columns >= 1 && part.columns <= 64 && Aligned(part.basis, 4) &&
         Aligned(part.bands, 8) && Aligned(part.head_bands, 4) && Aligned(part.channels, 2) &&
         Aligned(params.payloads, 8) && Aligned(params.dense, 8) && params.head_stride % 8 == 0 &&
         params.head_stride >= static_cast<int64_t>(s) * part.head_dim &&
         (params.dtype == ElementType::kBf16 || params.dtype == ElementType::kFp16);
}

template <ElementType kType>
cudaError_t Launch(const DecodeSegmentsParams& params, cudaStream_t stream) {
  const PartView& part = params.part;
  const int groups = (part.columns + 7) / 8;
  constexpr int kMostEntries = 2048;  // 48 KiB
  const int entries = groups * part.segment_tokens * 2;
  DecodeSizes sizes = {};
  if (entries <= kMostEntries) sizes.table_entries = entries;
  sizes.stage_bytes = DecodedChannels::Bytes(groups);
  const auto kernel = groups == 1 ? DecodeKernel<kType, true> : DecodeKernel<kType, false>;
  const int shared = sizes.table_entries * static_cast<int>(sizeof(uint4) + sizeof(uint2)) +
                     kDecodeWarps * sizes.stage_bytes +
                     part.head_dim * static_cast<int>(sizeof(ChannelPlace));
  cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  int device = 0;
  int processors = 0;
  int blocks = 0;
  status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kDecodeThreads, shared);
  if (status != cudaSuccess) return status;
  // A block stays with one head.
  const int slices = (part.head_dim + kWidth - 1) / kWidth;
  const int work = (params.segments * slices + kDecodeWarps - 1) / kDecodeWarps;
  const int of_head =
      std::clamp(processors * blocks / part.kv_heads, 1, std::min(work, params.segments));
  kernel<<<of_head * part.kv_heads, kDecodeThreads, shared, stream>>>(params, sizes);
  status = cudaGetLastError();
  if (status != cudaSuccess || part.rotations == nullptr) return status;
  return LaunchDecodeRotated(params, stream);
}

}  // namespace
}  // namespace codec

cudaError_t LaunchDecodeSegments(const DecodeSegmentsParams& params, cudaStream_t stream) {
  if (!codec::Valid(params)) return cudaErrorInvalidValue;
  return params.dtype == ElementType::kBf16 ? codec::Launch<ElementType::kBf16>(params, stream)
                                            : codec::Launch<ElementType::kFp16>(params, stream);
}

}  // namespace fourierkv::kernels
