// Decoding of rotated heads, X^ = Y^ U^T, without spectral columns of Y^. With integers q of
// resident columns and basis B, all in one sum on tensor cores,
//
//   X^[t][d] = sum over resident j of (q[t][j] scale_j) U[d][j]  +  sum over j of offset_j U[d][j]
//            + sum over m of B[t][m] C'[m][d],      C' = C U^T over spectral columns.
//
// A block keeps U of a head, or of as many rows as fit, in shared memory as operands. For every
// segment it turns coefficients and offsets back; then its warps make 64 tokens of 32 channels at a
// time, as for heads that are not rotated. q scale and stored coefficients are exact in two terms
// of bf16, everything else is split in two or three.

#include <algorithm>

#include "kernels/decode_basis.cuh"
#include "kernels/decode_residents.cuh"
#include "kernels/decode_rotated.cuh"
#include "kernels/decode_turned.cuh"
#include "kernels/payload_ring.cuh"
#include "kernels/slice_bands.cuh"

namespace fourierkv::kernels::codec {
namespace {

// Adds integers of columns 2 c, 2 c + 1 and 2 c + 8, 2 c + 9 of a step, if they are of a kind whose
// bits are set in `kind`, to `pairs`, which are 0 there. load(codes, place) loads a column's.
template <class Codes, class Load, class Unpack>
__device__ __forceinline__ void AddColumns(const ChannelPlace* places, uint32_t kind,
                                           const Load& load, const Unpack& unpack,
                                           uint32_t (&pairs)[2][4]) {
  if (kind == 0) return;
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
  Codes codes[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int at = column + 8 * (e / 2) + e % 2;
    if ((kind >> at & 1u) != 0) load(codes[e], places[at]);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t made[4];
    unpack(codes[2 * h], codes[2 * h + 1], made);
#pragma unroll
    for (int k = 0; k < 4; ++k) pairs[h][k] |= made[k];
  }
}

// sum += 32 tokens of a step of 16 resident columns times the rotation's for 32 channels.
template <class Bytes>
__device__ __forceinline__ void MultiplyResidents(const ChannelPlace* places, int columns,
                                                  const uint16_t* steps, const uint4* rotation,
                                                  const TokenOrder& order, int tokens, int i,
                                                  int half, const Bytes& head,
                                                  float (&sum)[2][4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int bits = lane < min(columns, 16) ? places[lane].bits : 0;
  const uint32_t words = __ballot_sync(0xffffffffu, bits >= 2 && bits <= 4);
  const uint32_t bytes = __ballot_sync(0xffffffffu, bits == 8);
  const uint32_t values = __ballot_sync(0xffffffffu, bits == 16);
  uint32_t pairs[2][4] = {};
  AddColumns<WordCodes>(
      places, words,
      [&](WordCodes& codes, const ChannelPlace& place) {
        codes.Load(place, tokens, i, true, head);
      },
      [half](const WordCodes& even, const WordCodes& odd, uint32_t(&made)[4]) {
        WordCodes::Unpack(even, odd, half, made);
      },
      pairs);
  AddColumns<ByteCodes>(
      places, bytes,
      [&](ByteCodes& codes, const ChannelPlace& place) { codes.Load(place, order, i, half, head); },
      ByteCodes::Unpack, pairs);
  AddColumns<ValueCodes>(
      places, values,
      [&](ValueCodes& codes, const ChannelPlace& place) {
        codes.Load(place, order, i, half, head);
      },
      ValueCodes::Unpack, pairs);
  uint4 u[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) u[j] = rotation[32 * j + lane];
  const auto* const scales = reinterpret_cast<const uint32_t*>(steps) + lane % 4;
  const uint32_t scale[2] = {scales[0], scales[4]};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t q = pairs[e / 2][2 * k + e % 2];
      high[e] = FmaBf16(q, scale[e / 2], 0);
      low[e] = FmaBf16(q, scale[e / 2], high[e] ^ 0x80008000u);  // exactly
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      MmaBf16(sum[k][j], high[0], high[1], high[2], high[3], u[j].x, u[j].y);
      MmaBf16(sum[k][j], high[0], high[1], high[2], high[3], u[j].z, u[j].w);
      MmaBf16(sum[k][j], low[0], low[1], low[2], low[3], u[j].x, u[j].y);
    }
  }
}

// Tokens (i, 4 half to 4 half + 3) for i = 8 * step + r of 32 channels, number `wide` of the slice.
template <ElementType kType, class Bytes>
__device__ __forceinline__ void MakeTokens(const PartView& part, const ColumnOrder& columns,
                                           const RotatedSizes& sizes, const RotatedBlock& block,
                                           const TokenOrder& order, int groups, int step, int half,
                                           int wide, const uint16_t* steps, const Bytes& head,
                                           uint32_t (&out)[4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tiles = sizes.width / 8;
  const int i = 8 * step + lane / 4;
  float sum[2][4][4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 constant = *reinterpret_cast<const float2*>(
        block.constants + 32 * wide + DecodedChannels::Channel(j, 0) + 8 * (lane % 4));
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      sum[k][j][0] = sum[k][j][2] = constant.x;
      sum[k][j][1] = sum[k][j][3] = constant.y;
    }
  }
  for (int s = 0; s < columns.resident_steps; ++s) {
    MultiplyResidents(block.places + columns.spectral + 16 * s, columns.residents - 16 * s,
                      steps + 16 * s, block.rotation + (s * tiles + 4 * wide) * 32, order,
                      part.segment_tokens, i, half, head, sum);
  }
  for (int g = 0; g < groups; ++g) {
    const uint2* const turned = block.turned + (g * tiles + 4 * wide) * 32 + lane;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const BasisRows basis =
          sizes.table_entries > 0
              ? block.table.Read((g * (part.segment_tokens / 16) + 4 * step + 2 * half + k) * 32 +
                                 lane)
              : MakeBasisRows(part, lane, g, order.Token(i, 4 * half + 2 * k),
                              order.Token(i, 4 * half + 2 * k + 1));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint2 c = turned[32 * j];
        basis.Multiply(sum[k][j], c.x);
        MmaBf16K8(sum[k][j], basis.leading.x, basis.leading.y, c.y);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out[2 * k][j] = Element<kType>::Round(sum[k][j][0], sum[k][j][1]);
      out[2 * k + 1][j] = Element<kType>::Round(sum[k][j][2], sum[k][j][3]);
    }
  }
}

// Makes a segment's channels first to first + width of a head whose bytes of the payload are
// `head`. By the whole block. `steps` is for scales of resident columns.
template <ElementType kType, class Bytes>
__device__ __forceinline__ void MakeSegment(const PartView& part, const ColumnOrder& columns,
                                            const RotatedSizes& sizes, const RotatedBlock& block,
                                            const TokenOrder& order, int groups, int first,
                                            uint16_t* steps, const Bytes& head, uint16_t* to) {
  const int tokens = part.segment_tokens;
  const int d = part.head_dim;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float unit = 1.0f / sqrtf(static_cast<float>(tokens));
  for (int row = 0; row <= 8 * groups; row += kRows) {
    LoadTerms(columns, sizes, groups, row, head, block, steps);
    __syncthreads();
    TurnBack(columns, sizes, groups, row, unit, block);
    __syncthreads();
  }
  const int tasks = tokens / 64 * (sizes.width / 32);
  for (int task = static_cast<int>(threadIdx.x) / 32; task < tasks; task += kRotatedWarps) {
    const int wide = task % (sizes.width / 32);
    const int step = task / (sizes.width / 32);
    const int mine = first + 32 * wide + 8 * (lane % 4);
    if (first + 32 * wide >= d) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t out[4][4];
      MakeTokens<kType>(part, columns, sizes, block, order, groups, step, half, wide, steps, head,
                        out);
      if (mine >= d) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        *reinterpret_cast<uint4*>(to + mine +
                                  order.Token(8 * step + lane / 4, 4 * half + k) * d) = {
            out[k][0], out[k][1], out[k][2], out[k][3]};
      }
    }
  }
}

// A block stays with a slice of a head. kRing: payloads come into shared memory.
template <ElementType kType, bool kRing>
__global__ __launch_bounds__(kRotatedThreads,
                             2) void DecodeRotatedKernel(DecodeSegmentsParams params,
                                                         RotatedSizes sizes) {
  extern __shared__ uint4 shared[];
  const PartView& part = params.part;
  const int tokens = part.segment_tokens;
  const int d = part.head_dim;
  const int of_segment = part.kv_heads * sizes.slices;
  const int within = static_cast<int>(blockIdx.x) % of_segment;
  const int head = within / sizes.slices;
  const int first = within % sizes.slices * sizes.width;
  const float* const u = RotationOf(part, head);
  if (u == nullptr) return;

  // This block's segments.
  const int between = static_cast<int>(gridDim.x) / of_segment;
  const auto segment = [=](int fill) {
    return static_cast<int>(blockIdx.x) / of_segment + fill * between;
  };
  const int64_t start = part.head_offsets[head];

  auto* const base = reinterpret_cast<uint8_t*>(shared);
  auto* const ring_state = reinterpret_cast<PayloadRing::Place*>(base + sizes.bytes);
  const PayloadRing ring(ring_state, reinterpret_cast<uint8_t*>(ring_state + sizes.payload_places),
                         sizes.payload_places, sizes.payload_bytes,
                         static_cast<int>(part.head_offsets[head + 1] - start));
  if (kRing && threadIdx.x < 32) {
    const int fills = (params.segments - segment(0) + between - 1) / between;
    ring.StartFirst(fills, kRotatedWarps,
                    [&](int i) { return params.payloads[segment(i)] + start; });
  }
  RotatedBlock block;
  block.table = {shared, reinterpret_cast<uint2*>(base + sizes.trailing)};
  block.rotation = reinterpret_cast<uint4*>(base + sizes.rotation);
  block.turned = reinterpret_cast<uint2*>(base + sizes.turned);
  block.terms = reinterpret_cast<uint16_t*>(base + sizes.terms);
  block.constants = reinterpret_cast<float*>(base + sizes.constants);
  block.steps = reinterpret_cast<uint16_t*>(base + sizes.steps);
  block.places = reinterpret_cast<ChannelPlace*>(base + sizes.places);

  FindPlaces<true>(part, head, block.places);
  __syncthreads();
  int spectral = 0;
  int words = 0;
  int groups = 0;
  for (int at = 0; at < d; at += kRotatedThreads) {
    const int position = at + static_cast<int>(threadIdx.x);
    const ChannelPlace place = position < d ? block.places[position] : ChannelPlace{};
    spectral += __syncthreads_count(place.coefficients > 0);
    words |= __syncthreads_or(position < d && place.coefficients == 0 && place.bits <= 4);
    for (int g = 0; g < sizes.groups; ++g) {
      if (__syncthreads_or(place.coefficients > 8 * g) != 0) groups = max(groups, g + 1);
    }
  }
  ColumnOrder columns;
  columns.spectral = spectral;
  columns.residents = d - spectral;
  columns.resident_steps = (columns.residents + 15) / 16;
  columns.steps = columns.resident_steps + (spectral + 15) / 16;
  const TokenOrder order(words != 0, tokens);
  FillTable(part, sizes.table_entries, order, block.table);
  FillRotation(part, u, head, first, columns, sizes, block.rotation);

  int parity = 0;
  int fill = 0;
  for (int at = segment(0); at < params.segments; at = segment(++fill)) {
    uint16_t* const steps = block.steps + parity * 16 * sizes.most_steps;
    parity ^= 1;  // some warps may still need the last segment's
    uint16_t* const to = params.dense[at] + head * params.head_stride;
    if constexpr (kRing) {
      const int later = segment(fill + sizes.payload_places);
      const uint8_t* next = nullptr;
      if (later < params.segments) next = params.payloads[later] + start;
      MakeSegment<kType>(part, columns, sizes, block, order, groups, first, steps, ring.Wait(fill),
                         to);
      ring.LetGo(fill, kRotatedWarps, next);
    } else {
      const GlobalBytes bytes = {params.payloads[at] + start};
      MakeSegment<kType>(part, columns, sizes, block, order, groups, first, steps, bytes, to);
    }
  }
}

RotatedSizes SizesOf(const PartView& part, int width) {
  RotatedSizes sizes = {};
  sizes.width = width;
  sizes.slices = (part.head_dim + sizes.width - 1) / sizes.width;
  sizes.most_steps = (part.head_dim + 15) / 16 + 1;  // both kinds fill up
  sizes.groups = (part.columns + 7) / 8;
  constexpr int kMostEntries = 1024;  // 24 KiB
  const int entries = sizes.groups * part.segment_tokens * 2;
  if (entries <= kMostEntries) sizes.table_entries = entries;
  const auto take = [&sizes](int bytes) {
    const int at = sizes.bytes;
    sizes.bytes += (bytes + 15) / 16 * 16;
    return at;
  };
  take(16 * sizes.table_entries);
  sizes.trailing = take(8 * sizes.table_entries);
  sizes.rotation = take(sizes.most_steps * sizes.width / 8 * 32 * 16);
  sizes.turned = take(sizes.groups * sizes.width / 8 * 32 * 8);
  sizes.terms = take(2 * kRows * sizes.TermRow() * 2);
  sizes.constants = take(4 * sizes.width);
  sizes.steps = take(2 * 16 * sizes.most_steps * 2);
  sizes.places = take(static_cast<int>(sizeof(ChannelPlace)) * part.head_dim);
  return sizes;
}

template <ElementType kType>
cudaError_t Launch(const DecodeSegmentsParams& params, cudaStream_t stream) {
  const PartView& part = params.part;
  int device = 0;
  int processors = 0;
  int blocks = 0;
  int most = 0;
  int major = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  int width = part.head_dim <= 128   ? (part.head_dim + 31) / 32 * 32
              : part.head_dim <= 256 ? 64
                                     : 32;
  RotatedSizes sizes = SizesOf(part, width);
  while (sizes.bytes > most && width > 32) {
    width = (width / 2 + 31) / 32 * 32;
    sizes = SizesOf(part, width);
  }
  if (sizes.bytes > most) return cudaErrorNotSupported;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return status;
  if (major >= 9) {  // as far as it costs no block of a multiprocessor
    constexpr int kReserved = 1024;
    const int of_block = 2 * (sizes.bytes + kReserved) <= most + kReserved
                             ? (most + kReserved) / 2 - kReserved
                             : most;
    sizes.payload_places = PayloadPlaces(part.most_head_bytes, of_block - sizes.bytes, 2);
  }
  if (sizes.payload_places > 0) sizes.payload_bytes = static_cast<int>(part.most_head_bytes);
  const int shared =
      sizes.bytes +
      sizes.payload_places * (sizes.payload_bytes + static_cast<int>(sizeof(PayloadRing::Place)));
  const auto kernel = sizes.payload_places > 0 ? DecodeRotatedKernel<kType, true>
                                               : DecodeRotatedKernel<kType, false>;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kRotatedThreads, shared);
  if (status != cudaSuccess) return status;
  const int of_segment = part.kv_heads * sizes.slices;
  const int step = std::clamp(processors * blocks / of_segment, 1, params.segments);
  kernel<<<step * of_segment, kRotatedThreads, shared, stream>>>(params, sizes);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchDecodeRotated(const DecodeSegmentsParams& params, cudaStream_t stream) {
  return params.dtype == ElementType::kBf16 ? Launch<ElementType::kBf16>(params, stream)
                                            : Launch<ElementType::kFp16>(params, stream);
}

}  // namespace fourierkv::kernels::codec
