// Encoding of rotated heads: bands hold Y = X U. Coefficients are (B^T X) U, which is little work,
// so only resident columns of Y are made: on tensor cores, a few at a time, into shared memory,
// where they are quantised like channels.
//
// The error of spectral columns needs no Y either. With R = X - B B^T X,
//   sum over spectral j of |y_j - B c_j|^2 = |R U|^2 - sum over resident j of |y_j - B c_j|^2,
// and |R U| is |R|.

#include <algorithm>

#include "kernels/encode_report.cuh"
#include "kernels/slice_bands.cuh"
#include "kernels/unusual_values.cuh"

namespace fourierkv::kernels::codec {
namespace {

using Shape = TileShape<0, 0>;

// What a block has room for.
struct RotatedSizes {
  int32_t rows;     // tokens of X at once: a power of two from 32 to S
  int32_t columns;  // of Y at once: 8, 16 or 32
};

constexpr int kYPadding = 8;  // floats between columns of Y
constexpr int kCPadding = 8;  // floats between rows of coefficients
constexpr float kRotationUnit = 1.0f / 32767.0f;

struct RotatedState {
  SliceBands slice;
  int32_t large;
  int32_t normal;
  int32_t found[2];  // by ExamineUnusual
  double sums[2 * kWarps];
};

// What threads of a block share about the head they encode.
struct RotatedHead {
  int index;
  const uint16_t* x;
  uint8_t* payload;
  uint32_t tile;
  float* c;       // [groups * 8][head_dim + kCPadding]: B^T X
  float* energy;  // [head_dim]: of channels of X
  float* y;       // [columns][S + kYPadding], or coefficients
};

__device__ __forceinline__ int CRow(const PartView& part) { return part.head_dim + kCPadding; }
__device__ __forceinline__ int YRow(const PartView& part) {
  return part.segment_tokens + kYPadding;
}

// Tokens [first, first + rows) of X to the tile. Has a barrier at its end, and needs one before if
// the tile was in use.
__device__ __forceinline__ void LoadRows(const PartView& part, const Shape& shape,
                                         const RotatedHead& head, int first, int rows) {
  StartLoad(shape, head.tile, head.x + static_cast<int64_t>(first) * part.head_dim, part.head_dim,
            rows, part.head_dim);
  WaitForCopies<0>();
  __syncthreads();
}

// B^T X of the tile, whose first token is `first`.
template <ElementType kType>
__device__ __forceinline__ void Project(const PartView& part, const Shape& shape,
                                        const RotatedHead& head, BasisOperands basis, int groups,
                                        int first, int rows, Totals* totals) {
  const int warp = threadIdx.x / 32;
  for (int from = 16 * warp; from < part.head_dim; from += 16 * kWarps) {
    ProjectChannels<kType>(shape, head.tile + 2 * from, part.head_dim - from >= 16 ? 2 : 1, basis,
                           groups, first / 16, rows / 16, first > 0, {head.c + from, CRow(part), 1},
                           head.energy + from, totals);
  }
}

// (B^T X) U for columns [first, first + count) to head.y, [groups * 8][count].
__device__ __forceinline__ void RotateCoefficients(const PartView& part, const RotatedHead& head,
                                                   const int16_t* u, int groups, int first,
                                                   int count) {
  const int d = part.head_dim;
  for (int i = threadIdx.x; i < groups * count; i += kThreads) {
    const int column = i % count;
    const int m = i / count * 8;
    float sum[8] = {};
    const int16_t* from = u + first + column;
    const float* c = head.c + m * CRow(part);
#pragma unroll 16  // as many loads at once
    for (int channel = 0; channel < d; ++channel) {
      const float factor = static_cast<float>(__ldg(from + channel * d));
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] = fmaf(c[e * CRow(part) + channel], factor, sum[e]);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) head.y[(m + e) * count + column] = sum[e] * kRotationUnit;
  }
}

// Stores coefficients of spectral columns, and adds to the error what they and those of resident
// columns account for.
__device__ __forceinline__ void EncodeCoefficients(const PartView& part, const RotatedHead& head,
                                                   const SliceBands& slice, const int16_t* u,
                                                   int at_once, Totals* totals) {
  const int d = part.head_dim;
  const int rows = slice.groups * 8;
  const auto squares_of = [rows](const float* c, int stride) {
    double sum = 0;
    for (int m = 0; m < rows; ++m) sum += static_cast<double>(c[m * stride]) * c[m * stride];
    return sum;
  };
  for (int channel = threadIdx.x; channel < d; channel += kThreads) {
    totals->energy += head.energy[channel];
    totals->error += fmax(0.0, head.energy[channel] - squares_of(head.c + channel, CRow(part)));
  }
  for (int first = 0; first < d; first += at_once) {
    const int count = min(at_once, d - first);
    RotateCoefficients(part, head, u, slice.groups, first, count);
    __syncthreads();
    for (int b = 0; b < slice.count; ++b) {
      const BandView& band = slice.bands[b].view;
      const int position = band.channels - head.index * d;  // of its first column
      for (int j = max(0, first - position) + static_cast<int>(threadIdx.x);
           j < min(band.size, first + count - position); j += kThreads) {
        const float* const c = head.y + position + j - first;
        auto rest = static_cast<float>(squares_of(c, count));
        if (band.coefficients > 0) {
          totals->error += StoreCoefficients(band, j, c, count, head.payload, &rest);
        }
        totals->error += rest;
      }
    }
    __syncthreads();
  }
}

// Tokens of the tile, `first` on, of columns [from, from + count) of the head to head.y. `operands`
// are the head's; `last` is the last column that they may be read of.
template <ElementType kType>
__device__ __forceinline__ void RotateRows(const PartView& part, const Shape& shape,
                                           const RotatedHead& head, const uint4* operands, int from,
                                           int count, int last, int first, int rows) {
  const int lane = threadIdx.x % 32;
  const int d = part.head_dim;
  for (int t = threadIdx.x / 32 * 32; t < rows; t += 32 * kWarps) {
    float sum[2][4][4] = {};
    const uint32_t row = head.tile + shape.Row(t + (lane & 8) + (lane & 7));
#pragma unroll 2
    for (int s = 0; s < (d + 15) / 16; ++s) {
      // Without a second half the operands are 0, and any values will do.
      const int piece = min(2 * s + (lane >> 4), d / 8 - 1);
      uint32_t a[2][4];
      LoadMatrices<false>(a[0], row + 16 * piece);
      LoadMatrices<false>(a[1], row + shape.Row(16) + 16 * piece);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (8 * n >= count) continue;
        const int column = min(from + 8 * n + lane / 4, last);
        const uint4 u = __ldg(operands + (s * d + column) * 4 + lane % 4);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Element<kType>::Mma(sum[i][n], a[i], u.x, u.y);
          Element<kType>::Mma(sum[i][n], a[i], u.z, u.w);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (8 * n >= count) continue;
      float* const to = head.y + (8 * n + 2 * (lane % 4)) * YRow(part) + first + t + lane / 4;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          to[16 * i + 8 * (e / 2) + (e % 2) * YRow(part)] = sum[i][n][e] * kRotationUnit;
        }
      }
    }
  }
}

template <ElementType kType>
__global__ __launch_bounds__(kThreads, 2) void EncodeRotatedKernel(EncodeSegmentsParams params,
                                                                   EncodeWorkspace workspace,
                                                                   Shape shape,
                                                                   RotatedSizes sizes) {
  extern __shared__ uint4 shared[];
  __shared__ RotatedState state;
  const PartView& part = params.part;
  const int d = part.head_dim;
  const int tokens = part.segment_tokens;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int lanes = shape.lanes();
  const int together = 32 / lanes;
  const int u_steps = (d + 15) / 16;
  const bool whole = sizes.rows == tokens;  // X is in the tile all the time

  RotatedHead head;
  head.tile = SharedAddress(shared);
  head.y = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(shared) +
                                    TileBytes(sizes.rows, shape.pitch()));
  head.energy = head.y + sizes.columns * YRow(part);
  head.c = head.energy + d;

  for (int index = static_cast<int>(blockIdx.x); index < params.segments * part.kv_heads;
       index += static_cast<int>(gridDim.x)) {
    head.index = index % part.kv_heads;
    const int segment = index / part.kv_heads;
    const float* const rotation = RotationOf(part, head.index);
    if (rotation == nullptr) continue;
    head.x = params.dense[segment] + head.index * params.head_stride;
    head.payload = params.payloads[segment];
    if (warp == 0) {
      FindBands(part, head.index, 0, d, &state.slice, nullptr);
      if (lane == 0) state.large = state.normal = 0;
      __syncwarp();
      ZeroPadding(part, state.slice, head.payload);
    }
    __syncthreads();
    const SliceBands& slice = state.slice;
    const int groups = slice.groups;

    Totals totals;
    if (groups > 0) {
      for (int first = 0; first < tokens; first += sizes.rows) {
        LoadRows(part, shape, head, first, sizes.rows);
        Project<kType>(part, shape, head, workspace.basis, groups, first, sizes.rows, &totals);
        __syncthreads();
      }
      const int at_once = min(d, sizes.columns * YRow(part) / (8 * groups));
      EncodeCoefficients(part, head, slice,
                         workspace.columns + static_cast<int64_t>(head.index) * d * d, at_once,
                         &totals);
    } else if (whole) {
      LoadRows(part, shape, head, 0, tokens);
    }

    const uint4* const operands =
        workspace.rotations + static_cast<int64_t>(head.index) * u_steps * d * 4;
    Totals residents;
    for (int b = 0; b < slice.count; ++b) {
      const BandView& band = slice.bands[b].view;
      if (band.coefficients > 0) continue;
      const int position = band.channels - head.index * d;
      for (int from = 0; from < band.size; from += sizes.columns) {
        const int count = min(sizes.columns, band.size - from);
        for (int first = 0; first < tokens; first += sizes.rows) {
          if (!whole) LoadRows(part, shape, head, first, sizes.rows);
          RotateRows<kType>(part, shape, head, operands, position + from, count,
                            position + band.size - 1, first, sizes.rows);
          __syncthreads();
        }
        for (int u = warp; u * together < count; u += kWarps) {
          const int column = u * together + lane / lanes;
          const bool active = column < count;
          const int mine = active ? column : count - 1;
          EncodeResidentOfBand(FloatChannel(head.y + mine * YRow(part), lanes), band, from + mine,
                               active, lane % lanes, lanes, head.payload, &residents);
        }
        __syncthreads();
      }
    }
    totals.error += residents.error;
    if (groups > 0) {
      totals.error -= residents.energy;  // it is part of |R|^2
    } else {
      totals.energy = residents.energy;
    }
    if (totals.large || residents.large) state.large = 1;
    if (totals.normal || residents.normal) state.normal = 1;
    __syncthreads();

    TilePartial partial = {0, 0, kNone};
    if (state.large != 0 || state.normal == 0) {
      ExamineUnusual<kType>(params, segment, head.index, 0, d, rotation, &totals, state.found);
      partial.refused = state.found[0];
    }
    SumTotals(&totals, state.sums);
    partial.energy = totals.energy;
    partial.error = fmax(0.0, totals.error);
    if (warp == kWarps - 1) {
      HandIn(params, workspace, segment, head.index, 0, workspace.slices, partial);
    }
  }
}

int SharedBytes(const PartView& part, const EncodeWorkspace& workspace, int pitch,
                const RotatedSizes& sizes) {
  return TileBytes(sizes.rows, pitch) +
         4 * (sizes.columns * (part.segment_tokens + kYPadding) + part.head_dim +
              workspace.groups * 8 * (part.head_dim + kCPadding));
}

template <ElementType kType>
cudaError_t Launch(const EncodeSegmentsParams& params, const EncodeWorkspace& workspace,
                   cudaStream_t stream) {
  const PartView& part = params.part;
  int device = 0;
  int processors = 0;
  int most = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  constexpr int kStaticBytes = 2048;  // of the kernel, at most
  const int pitch = TilePitch(part.head_dim);
  RotatedSizes sizes = {32, 32};
  while (sizes.rows < part.segment_tokens && 2 * sizes.rows * part.head_dim <= 32768) {
    sizes.rows *= 2;
  }
  const auto fits = [&] {
    return SharedBytes(part, workspace, pitch, sizes) + kStaticBytes <= most;
  };
  while (sizes.columns > 8 && !fits()) sizes.columns /= 2;
  while (sizes.rows > 32 && !fits()) sizes.rows /= 2;
  if (!fits()) return cudaErrorNotSupported;
  const int shared = SharedBytes(part, workspace, pitch, sizes);
  const auto kernel = EncodeRotatedKernel<kType>;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  int blocks = 0;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared);
  if (status != cudaSuccess) return status;
  const auto grid = static_cast<unsigned>(
      std::min(params.segments * part.kv_heads, processors * std::max(blocks, 1)));
  kernel<<<grid, kThreads, shared, stream>>>(params, workspace, Shape{part.segment_tokens, pitch},
                                             sizes);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchEncodeRotated(const EncodeSegmentsParams& params,
                                const EncodeWorkspace& workspace, cudaStream_t stream) {
  return params.dtype == ElementType::kBf16 ? Launch<ElementType::kBf16>(params, workspace, stream)
                                            : Launch<ElementType::kFp16>(params, workspace, stream);
}

}  // namespace fourierkv::kernels::codec
