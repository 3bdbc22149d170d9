// Decoding: a warp makes 32 channels of a head of a segment, 64 tokens at a time, and stores them
// from registers. Spectral channels are products on tensor cores, resident ones packed
// multiply-adds on top of them. Payloads come into shared memory ahead of the warps, which share
// them and tables, but never wait for each other.

#include <algorithm>

#include "kernels/decode_basis.cuh"
#include "kernels/decode_channels.cuh"
#include "kernels/decode_residents.cuh"
#include "kernels/decode_rotated.cuh"
#include "kernels/decode_segments.h"
#include "kernels/payload_ring.cuh"
#include "kernels/slice_bands.cuh"

namespace fourierkv::kernels {
namespace codec {
namespace {

constexpr int kDecodeWarps = 8;
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kDecodeBlocks = 2;   // of a multiprocessor
constexpr int kWidth = 32;         // channels of a warp
constexpr int kTokensAtOnce = 64;  // of a warp: 8 of each of 8 rows of operands

// What is in a block's shared memory: the basis, payloads on their way, what every warp knows of
// its channels, and the places of all channels.
struct DecodeSizes {
  int32_t table_entries;   // 0 if operands are made when they are needed
  int32_t payload_places;  // 0 if payloads are read from where they are
  int32_t payload_bytes;   // of one
  int32_t stage_bytes;     // of a warp's DecodedChannels

  __host__ __device__ int RingBytes() const {
    return payload_places * (payload_bytes + static_cast<int>(sizeof(PayloadRing::Place)));
  }
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

// The work of a warp: 32 channels, `slice`, of number `fill` of the block's segments.
struct DecodeTask {
  int fill;
  int slice;

  // Number `turn` of the block's. Which channels a warp has varies, since they are not the same
  // work.
  __device__ __forceinline__ DecodeTask(int slices, int turn)
      : fill(turn / slices),
        slice((kDecodeWarps % slices == 0 ? turn + turn / kDecodeWarps : turn) % slices) {}
};

// Makes the first 32 channels of `places`, of which `count` exist, of a head whose bytes of the
// payload are `head`. They begin at `to`.
template <ElementType kType, bool kOneGroup, class Bytes>
__device__ __forceinline__ void DecodeChannels(const PartView& part, const DecodeSizes& sizes,
                                               const BasisTable& table, const TokenOrder& order,
                                               const ChannelPlace* places, int count,
                                               const Bytes& head, DecodedChannels* stage,
                                               uint16_t* to) {
  const int tokens = part.segment_tokens;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int mine = 8 * (lane % 4);
  const float unit = 1.0f / sqrtf(static_cast<float>(tokens));
  const ChannelKinds kinds = LoadChannels(places, count, unit, head, stage);
  const LaneChannels channels(*stage);
  const uint32_t* const own = reinterpret_cast<const uint32_t*>(stage->coefficients) + lane;
#pragma unroll 1
  for (int step = 0; step < tokens / kTokensAtOnce; ++step) {
    const int i = 8 * step + lane / 4;
    WordCodes words[8];
    if (kinds.words != 0) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if ((kinds.words >> (mine + e) & 1u) != 0) {
          words[e].Load(places[mine + e], tokens, i, kinds.narrow, head);
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
      AddResidents<ByteCodes, kType>(places, kinds.bytes, channels, order, i, half, head, out);
      AddResidents<ValueCodes, kType>(places, kinds.values, channels, order, i, half, head, out);
      if (mine >= count) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        *reinterpret_cast<uint4*>(to + mine + order.Token(i, 4 * half + k) * part.head_dim) = {
            out[k][0], out[k][1], out[k][2], out[k][3]};
      }
    }
  }
}

// kOneGroup: no more than 8 columns of the basis, whose operands are in the table. kRing: payloads
// come into shared memory.
template <ElementType kType, bool kOneGroup, bool kRing>
__global__ __launch_bounds__(kDecodeThreads,
                             kDecodeBlocks) void DecodeKernel(DecodeSegmentsParams params,
                                                              DecodeSizes sizes) {
  extern __shared__ uint4 shared[];
  const PartView& part = params.part;
  const int tokens = part.segment_tokens;
  const int d = part.head_dim;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head = static_cast<int>(blockIdx.x) % part.kv_heads;
  if (RotationOf(part, head) != nullptr) return;

  // This block's segments are first, first + step, ...
  const int first = static_cast<int>(blockIdx.x) / part.kv_heads;
  const int step = static_cast<int>(gridDim.x) / part.kv_heads;
  const auto segment = [=](int fill) { return first + fill * step; };
  const int64_t start = part.head_offsets[head];

  auto* const payloads = reinterpret_cast<uint8_t*>(shared);
  auto* const ring_state =
      reinterpret_cast<PayloadRing::Place*>(payloads + sizes.payload_places * sizes.payload_bytes);
  auto* const leading = reinterpret_cast<uint4*>(ring_state + sizes.payload_places);
  const BasisTable table = {leading, reinterpret_cast<uint2*>(leading + sizes.table_entries)};
  auto* const stages = reinterpret_cast<uint8_t*>(table.trailing + sizes.table_entries);
  auto* const stage = reinterpret_cast<DecodedChannels*>(stages + warp * sizes.stage_bytes);
  auto* const places = reinterpret_cast<ChannelPlace*>(stages + kDecodeWarps * sizes.stage_bytes);
  const PayloadRing ring(ring_state, payloads, sizes.payload_places, sizes.payload_bytes,
                         static_cast<int>(part.head_offsets[head + 1] - start));
  const int slices = (d + kWidth - 1) / kWidth;
  if (kRing && warp == 0) {
    const int fills = (params.segments - first + step - 1) / step;
    ring.StartFirst(fills, slices, [&](int i) { return params.payloads[segment(i)] + start; });
  }
  FindPlaces(part, head, places);
  __syncthreads();
  bool any = false;
  for (int channel = static_cast<int>(threadIdx.x); channel < d; channel += kDecodeThreads) {
    any |= places[channel].coefficients == 0 && places[channel].bits <= 4;
  }
  const TokenOrder order(__syncthreads_or(any) != 0, tokens);
  FillTable(part, sizes.table_entries, order, table);
  __syncthreads();

  for (int turn = warp;; turn += kDecodeWarps) {
    const DecodeTask task(slices, turn);
    const int at = segment(task.fill);
    if (at >= params.segments) return;
    const int from = task.slice * kWidth;
    uint16_t* const to = params.dense[at] + head * params.head_stride + from;
    if constexpr (kRing) {
      const int later = segment(task.fill + sizes.payload_places);
      const uint8_t* next = nullptr;
      if (later < params.segments) next = params.payloads[later] + start;
      const SharedBytes bytes = ring.Wait(task.fill);
      DecodeChannels<kType, kOneGroup>(part, sizes, table, order, places + from, d - from, bytes,
                                       stage, to);
      ring.LetGo(task.fill, slices, next);
    } else {
      const GlobalBytes bytes = {params.payloads[at] + start};
      DecodeChannels<kType, kOneGroup>(part, sizes, table, order, places + from, d - from, bytes,
                                       stage, to);
    }
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
         Aligned(part.head_offsets, 8) && part.most_head_bytes >= 16 &&
         part.most_head_bytes % 16 == 0 && Aligned(params.payloads, 8) &&
         Aligned(params.dense, 8) && params.head_stride % 8 == 0 &&
         params.head_stride >= static_cast<int64_t>(s) * part.head_dim &&
         (params.dtype == ElementType::kBf16 || params.dtype == ElementType::kFp16);
}

template <ElementType kType>
cudaError_t Launch(const DecodeSegmentsParams& params, cudaStream_t stream) {
  const PartView& part = params.part;
  int device = 0;
  int processors = 0;
  int major = 0;
  int of_processor = 0;  // shared memory, in bytes
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return status;
  status =
      cudaDeviceGetAttribute(&of_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (status != cudaSuccess) return status;

  const int groups = (part.columns + 7) / 8;
  constexpr int kMostEntries = 2048;  // 48 KiB
  const int entries = groups * part.segment_tokens * 2;
  DecodeSizes sizes = {};
  if (entries <= kMostEntries) sizes.table_entries = entries;
  sizes.stage_bytes = DecodedChannels::Bytes(groups);
  const int other = sizes.table_entries * static_cast<int>(sizeof(uint4) + sizeof(uint2)) +
                    kDecodeWarps * sizes.stage_bytes +
                    part.head_dim * static_cast<int>(sizeof(ChannelPlace));
  if (major >= 9) {
    constexpr int kReserved = 1024;  // of each block, by the system
    sizes.payload_places =
        PayloadPlaces(part.most_head_bytes, of_processor / kDecodeBlocks - other - kReserved, 3);
  }
  if (sizes.payload_places > 0) sizes.payload_bytes = static_cast<int>(part.most_head_bytes);
  const int shared = other + sizes.RingBytes();
  const bool ring = sizes.payload_places > 0;
  const auto kernel =
      groups == 1 ? (ring ? DecodeKernel<kType, true, true> : DecodeKernel<kType, true, false>)
                  : (ring ? DecodeKernel<kType, false, true> : DecodeKernel<kType, false, false>);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  int blocks = 0;
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
