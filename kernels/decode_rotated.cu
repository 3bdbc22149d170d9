// Decoding of rotated heads, X^ = Y^ U^T, without Y^ itself. With integers q of resident columns
// and basis B, all in one sum on tensor cores,
//
//   X^[t][d] = sum over resident j of q[t][j] (scale_j U[d][j])  +  sum over j of offset_j U[d][j]
//            + sum over m of B[t][m] C'[m][d],      C' = C U^T over spectral columns.
//
// q and stored coefficients are exact in bf16; every other operand is split in three terms of it.

#include <algorithm>

#include "kernels/decode_residents.cuh"
#include "kernels/decode_rotated.cuh"
#include "kernels/decode_spectral.cuh"

namespace fourierkv::kernels::codec {
namespace {

constexpr int kRows =
    64;  // tokens at once; at least as many as a spectral channel has coefficients
constexpr int kTerms = 3;  // of split operands

// What a block makes: `channels` of a head, and how far apart rows of its operands are, in values.
struct RotatedTile {
  int32_t channels;  // 32 or 64
  int32_t slices;    // of a head
  int32_t a_row;     // an odd number of 16-byte pieces, as all of these
  int32_t spectral_row;
};

// Places in shared memory.
struct RotatedOperands {
  uint16_t* a;  // [kRows][a_row]: q, or stored coefficients; then what comes out
  uint16_t* v;  // [kTerms][channels][a_row]: scale_j U[d][j], columns in the order of the bands
  uint16_t* spectral;  // [kTerms][channels][spectral_row]: C'
  float* scale;        // [head_dim]
  float* offset;       // [head_dim]
  float* constant;     // [channels]: sum over j of offset_j U[d][j]
};

__host__ __device__ __forceinline__ int RoundUp(int x, int multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Scales and offsets of all columns, and the coefficients of spectral ones to `a`, 0 elsewhere.
__device__ __forceinline__ void LoadColumns(const PartView& part, const SliceBands& slice, int head,
                                            const uint8_t* payload, const RotatedTile& tile,
                                            const RotatedOperands& to) {
  auto* const pairs = reinterpret_cast<uint32_t*>(to.a);
  for (int i = threadIdx.x; i < kRows * tile.a_row / 2; i += kThreads) pairs[i] = 0;
  __syncthreads();
  for (int b = 0; b < slice.count; ++b) {
    const BandView& band = slice.bands[b].view;
    const int position = band.channels - head * part.head_dim;
    for (int j = threadIdx.x; j < band.size; j += kThreads) {
      Dequantiser grid;
      if (band.coefficients == 0) {
        grid = Dequantiser(band, j, payload);
      } else if (band.bits != 16) {
        grid.scale =
            Bf16ToFloat(__ldg(reinterpret_cast<const uint16_t*>(payload + band.scale_offset) + j));
      }
      to.scale[position + j] = grid.scale;
      to.offset[position + j] = grid.offset;
    }
    const uint8_t* const data = payload + band.data_offset;
    for (int i = threadIdx.x; i < band.size * band.coefficients; i += kThreads) {
      const int m = i / band.size;
      to.a[m * tile.a_row + position + i % band.size] =
          band.bits == 16
              ? __ldg(reinterpret_cast<const uint16_t*>(data) + i)
              : FloatToBf16(static_cast<float>(__ldg(reinterpret_cast<const int8_t*>(data) + i)));
    }
  }
}

// Terms of scale_j U[d][j] for channels [first, first + tile.channels) of X. A warp takes every
// kWarps-th of them.
__device__ __forceinline__ void ScaleRotation(const PartView& part, const float* u, int head,
                                              int first, const RotatedTile& tile,
                                              const RotatedOperands& to) {
  constexpr int kMost = 64 / kWarps;
  const int d = part.head_dim;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const uint16_t* const channels = part.channels + head * d;
  const int term = tile.channels * tile.a_row;
  float constant[kMost] = {};
  for (int p = 2 * lane; p < RoundUp(d, 16); p += 64) {
    const bool exists = p < d;  // d is even
    const float2 scale = exists ? float2{to.scale[p], to.scale[p + 1]} : float2{0, 0};
    const float2 offset = exists ? float2{to.offset[p], to.offset[p + 1]} : float2{0, 0};
    const float* const row = u + (exists ? channels[p] : 0);
    const float* const next = u + (exists ? channels[p + 1] : 0);
    float2 factor[kMost];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int64_t at = static_cast<int64_t>(min(first + warp + i * kWarps, d - 1)) * d;
      factor[i] = {__ldg(row + at), __ldg(next + at)};
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int n = warp + i * kWarps;
      if (n >= tile.channels) break;
      constant[i] = fmaf(offset.x, factor[i].x, constant[i]);
      constant[i] = fmaf(offset.y, factor[i].y, constant[i]);
      const SplitPair<ElementType::kBf16> split(scale.x * factor[i].x, scale.y * factor[i].y);
      auto* const at = to.v + n * tile.a_row + p;
      *reinterpret_cast<uint32_t*>(at) = split.high;
      *reinterpret_cast<uint32_t*>(at + term) = split.middle;
      *reinterpret_cast<uint32_t*>(at + 2 * term) = split.low;
    }
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    for (int distance = 16; distance > 0; distance /= 2) {
      constant[i] += __shfl_xor_sync(0xffffffffu, constant[i], distance);
    }
    if (lane == 0 && warp + i * kWarps < tile.channels)
      to.constant[warp + i * kWarps] = constant[i];
  }
}

// sum += A V^T for 16 rows of `a` from `row` on, 32 channels from `channel` on, and columns
// [begin, end), both multiples of 16. By one warp.
__device__ __forceinline__ void MultiplyColumns(const RotatedTile& tile,
                                                const RotatedOperands& from, int row, int channel,
                                                int begin, int end, float (&sum)[4][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t a = SharedAddress(from.a + (row + (lane & 15)) * tile.a_row + 8 * (lane >> 4));
  const uint32_t v =
      SharedAddress(from.v + (channel + 8 * (lane >> 4) + (lane & 7)) * tile.a_row + (lane & 8));
  const int term = 2 * tile.channels * tile.a_row;  // in bytes
  for (int p = begin; p < end; p += 16) {
    uint32_t x[4];
    LoadMatrices<false>(x, a + 2 * p);
#pragma unroll
    for (int k = 0; k < kTerms; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t y[4];
        LoadMatrices<false>(y, v + k * term + 2 * (16 * i * tile.a_row + p));
        MmaBf16(sum[2 * i], x[0], x[1], x[2], x[3], y[0], y[1]);
        MmaBf16(sum[2 * i + 1], x[0], x[1], x[2], x[3], y[2], y[3]);
      }
    }
  }
}

// C' of `spectral` columns, whose coefficients are in `a`.
__device__ __forceinline__ void RotateBack(const RotatedTile& tile, const RotatedOperands& at,
                                           int groups, int spectral) {
  const int lane = threadIdx.x % 32;
  const int rows = RoundUp(groups * 8, 16) / 16;
  const int term = tile.channels * tile.spectral_row;
  for (int u = threadIdx.x / 32; u < rows * tile.channels / 32; u += kWarps) {
    const int row = u % rows * 16;
    const int channel = u / rows * 32;
    float sum[4][4] = {};
    MultiplyColumns(tile, at, row, channel, 0, RoundUp(spectral, 16), sum);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = row + lane / 4 + 8 * (e / 2);
        if (m >= groups * 8) continue;
        const SplitPair<ElementType::kBf16> split(sum[n][e], 0.0f);
        uint16_t* const to =
            at.spectral + (channel + 8 * n + 2 * (lane % 4) + e % 2) * tile.spectral_row + m;
        to[0] = static_cast<uint16_t>(split.high);
        to[term] = static_cast<uint16_t>(split.middle);
        to[2 * term] = static_cast<uint16_t>(split.low);
      }
    }
  }
}

// Where integers of one token stand in planes of kBits bits.
template <int kBits>
class PlaneToken {
 public:
  __device__ __forceinline__ PlaneToken(int tokens, int t) {
    words_ = tokens * kBits / 32;
    const int log_words = __ffs(words_) - 1;
    word_ = t & (words_ - 1);
    shift_ = (t >> log_words) * kBits;
  }
  // Of channel j.
  __device__ __forceinline__ uint32_t Code(const uint8_t* plane, int j) const {
    const uint32_t word = __ldg(reinterpret_cast<const uint32_t*>(plane) + j * words_ + word_);
    return word >> shift_ & ((1u << kBits) - 1);
  }

 private:
  int words_, word_, shift_;
};

// Integers, or bf16 values, of token t of a band's channels to to[j].
template <int kBits>
__device__ __forceinline__ void LoadToken(const BandView& band, const uint8_t* payload, int tokens,
                                          int t, int first, int step, uint16_t* to) {
  const uint8_t* const data = payload + band.data_offset;
  const PlaneToken<kBits == 3 ? 2 : kBits == 16 ? 8 : kBits> plane(tokens, t);
  const PlaneToken<1> upper(tokens, t);
#pragma unroll 4
  for (int j = first; j < band.size; j += step) {
    if constexpr (kBits == 16) {
      to[j] = __ldg(reinterpret_cast<const uint16_t*>(data) + static_cast<int64_t>(j) * tokens + t);
    } else {
      uint32_t code;
      if constexpr (kBits == 8) {
        code = __ldg(data + static_cast<int64_t>(j) * tokens + t);
      } else if constexpr (kBits == 3) {
        code = plane.Code(data, j) | upper.Code(payload + band.high_offset, j) << 2;
      } else {
        code = plane.Code(data, j);
      }
      to[j] = FloatToBf16(static_cast<float>(code));
    }
  }
}

// Integers of tokens [token, token + kRows) of resident columns to `a`, and zeros to the columns
// before and behind them that tensor cores read.
__device__ __forceinline__ void LoadTokens(const PartView& part, const SliceBands& slice, int head,
                                           const uint8_t* payload, int token, int spectral,
                                           const RotatedTile& tile, uint16_t* a) {
  const int d = part.head_dim;
  const int tokens = part.segment_tokens;
  constexpr int kStep = kThreads / kRows;  // a thread has one token and every kStep-th channel
  const int t = token + static_cast<int>(threadIdx.x) % kRows;
  const int first = static_cast<int>(threadIdx.x) / kRows;
  uint16_t* const row = a + (t - token) * tile.a_row;
  for (int p = spectral / 16 * 16 + first; p < spectral; p += kStep) row[p] = 0;
  for (int p = d + first; p < RoundUp(d, 16); p += kStep) row[p] = 0;
  for (int b = 0; b < slice.count; ++b) {
    const BandView& band = slice.bands[b].view;
    if (band.coefficients > 0) continue;
    uint16_t* const to = row + band.channels - head * d;
    switch (band.bits) {
      case 2:
        LoadToken<2>(band, payload, tokens, t, first, kStep, to);
        break;
      case 3:
        LoadToken<3>(band, payload, tokens, t, first, kStep, to);
        break;
      case 4:
        LoadToken<4>(band, payload, tokens, t, first, kStep, to);
        break;
      case 8:
        LoadToken<8>(band, payload, tokens, t, first, kStep, to);
        break;
      default:
        LoadToken<16>(band, payload, tokens, t, first, kStep, to);
    }
  }
}

// sum += B C' for 16 tokens and 32 channels. By one warp.
__device__ __forceinline__ void MultiplySpectral(const PartView& part, const RotatedTile& tile,
                                                 const RotatedOperands& from, int groups, int token,
                                                 int channel, float (&sum)[4][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = SharedAddress(from.spectral + (channel + lane) * tile.spectral_row);
  const int term = 2 * tile.channels * tile.spectral_row;  // in bytes
  for (int g = 0; g < groups; ++g) {
    SplitPair<ElementType::kBf16> basis[2] = {{0, 0}, {0, 0}};
    LoadBasis(part, token, g, basis);
    uint32_t c[kTerms][4];
#pragma unroll
    for (int k = 0; k < kTerms; ++k) LoadMatrices<false>(c[k], at + k * term + 16 * g);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      // All products of terms but the four that are below float's last place.
      MmaBf16(sum[n], basis[0].high, basis[1].high, basis[0].middle, basis[1].middle, c[0][n],
              c[0][n]);
      MmaBf16(sum[n], basis[0].high, basis[1].high, basis[0].middle, basis[1].middle, c[1][n],
              c[1][n]);
      MmaBf16(sum[n], basis[0].high, basis[1].high, basis[0].low, basis[1].low, c[2][n], c[0][n]);
    }
  }
}

// One block a slice of a head of a segment.
template <ElementType kType>
__global__ __launch_bounds__(kThreads, 3) void DecodeRotatedKernel(DecodeSegmentsParams params,
                                                                   RotatedTile tile) {
  extern __shared__ uint4 shared[];
  __shared__ SliceBands slice;
  const PartView& part = params.part;
  const int d = part.head_dim;
  const int index = static_cast<int>(blockIdx.x);
  const int first = index % tile.slices * tile.channels;
  const int head = index / tile.slices % part.kv_heads;
  const int segment = index / tile.slices / part.kv_heads;
  const float* const u = RotationOf(part, head);
  if (u == nullptr) return;
  const uint8_t* const payload = params.payloads[segment];
  uint16_t* const out = params.dense[segment] + head * params.head_stride + first;
  RotatedOperands at;
  at.a = reinterpret_cast<uint16_t*>(shared);
  at.v = at.a + kRows * tile.a_row;
  at.spectral = at.v + kTerms * tile.channels * tile.a_row;
  at.scale = reinterpret_cast<float*>(at.spectral + kTerms * tile.channels * tile.spectral_row);
  at.offset = at.scale + d;
  at.constant = at.offset + d;

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp == 0) FindBands(part, head, 0, d, &slice, nullptr);
  __syncthreads();
  int spectral = 0;  // columns; they come first
  for (int b = 0; b < slice.count; ++b) {
    if (slice.bands[b].view.coefficients > 0) spectral += slice.bands[b].view.size;
  }
  LoadColumns(part, slice, head, payload, tile, at);
  __syncthreads();
  ScaleRotation(part, u, head, first, tile, at);
  __syncthreads();
  RotateBack(tile, at, slice.groups, spectral);

  const int row = warp % 4 * 16;
  const int channel = warp / 4 * 32;
  const bool busy = channel < tile.channels;
  const int out_row = tile.channels + 8;
  for (int token = 0; token < part.segment_tokens; token += kRows) {
    __syncthreads();
    LoadTokens(part, slice, head, payload, token, spectral, tile, at.a);
    __syncthreads();
    float sum[4][4];
    if (busy) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 constant =
            *reinterpret_cast<const float2*>(at.constant + channel + 8 * n + 2 * (lane % 4));
        sum[n][0] = sum[n][2] = constant.x;
        sum[n][1] = sum[n][3] = constant.y;
      }
      MultiplyColumns(tile, at, row, channel, spectral / 16 * 16, spectral < d ? RoundUp(d, 16) : 0,
                      sum);
      MultiplySpectral(part, tile, at, slice.groups, token + row, channel, sum);
    }
    __syncthreads();  // nobody needs the integers any more
    if (busy) {
      uint16_t* const to = at.a + (row + lane / 4) * out_row + channel + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        *reinterpret_cast<uint32_t*>(to + 8 * n) = Element<kType>::Round(sum[n][0], sum[n][1]);
        *reinterpret_cast<uint32_t*>(to + 8 * out_row + 8 * n) =
            Element<kType>::Round(sum[n][2], sum[n][3]);
      }
    }
    __syncthreads();
    const int pieces = tile.channels / 8;
    for (int i = threadIdx.x; i < kRows * pieces; i += kThreads) {
      const int c = 8 * (i % pieces);
      if (first + c >= d) continue;
      *reinterpret_cast<uint4*>(out + static_cast<int64_t>(token + i / pieces) * d + c) =
          *reinterpret_cast<const uint4*>(at.a + i / pieces * out_row + c);
    }
  }
}

template <ElementType kType>
cudaError_t Launch(const DecodeSegmentsParams& params, cudaStream_t stream) {
  const PartView& part = params.part;
  const int d = part.head_dim;
  int device = 0;
  int most = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  RotatedTile tile = {};
  tile.channels = d > 256 ? 32 : 64;
  tile.slices = (d + tile.channels - 1) / tile.channels;
  tile.a_row = std::max(RoundUp(d, 16), tile.channels) + 8;
  tile.spectral_row = ((part.columns + 7) / 8 | 1) * 8;
  const int shared = 2 * (kRows * tile.a_row + kTerms * tile.channels * tile.a_row +
                          kTerms * tile.channels * tile.spectral_row) +
                     4 * (2 * d + tile.channels);
  constexpr int kStaticBytes = 1024;  // of the kernel, at most
  if (shared + kStaticBytes > most) return cudaErrorNotSupported;
  const auto kernel = DecodeRotatedKernel<kType>;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  const auto blocks = static_cast<unsigned>(params.segments * part.kv_heads * tile.slices);
  kernel<<<blocks, kThreads, shared, stream>>>(params, tile);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchDecodeRotated(const DecodeSegmentsParams& params, cudaStream_t stream) {
  return params.dtype == ElementType::kBf16 ? Launch<ElementType::kBf16>(params, stream)
                                            : Launch<ElementType::kFp16>(params, stream);
}

}  // namespace fourierkv::kernels::codec
