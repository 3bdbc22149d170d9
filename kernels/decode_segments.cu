// Decoding: a block fills a tile in shared memory with a head of a segment, or as many of its
// channels as fit, spectral ones by tensor cores and resident ones by unpacking, and copies it out
// in rows.

#include <algorithm>

#include "kernels/decode_residents.cuh"
#include "kernels/decode_rotated.cuh"
#include "kernels/decode_segments.h"
#include "kernels/decode_spectral.cuh"

namespace fourierkv::kernels {
namespace codec {
namespace {

template <class Shape>
__device__ __forceinline__ void CopyOut(const Shape& shape, const uint8_t* tile, int channels,
                                        int stride, uint16_t* to) {
  const int pieces = channels / 8;
  int t = static_cast<int>(threadIdx.x) / pieces;
  int c = static_cast<int>(threadIdx.x) % pieces;
  const int rows_on = kThreads / pieces;
  const int pieces_on = kThreads % pieces;
  while (t < shape.tokens()) {
    *reinterpret_cast<uint4*>(to + static_cast<int64_t>(t) * stride + 8 * c) =
        *reinterpret_cast<const uint4*>(tile + shape.Row(t) + 16 * c);
    t += rows_on;
    c += pieces_on;
    if (c >= pieces) {
      c -= pieces;
      ++t;
    }
  }
}

// One block a slice of a head of a segment.
template <ElementType kType, class Shape>
__global__ __launch_bounds__(kThreads, 3) void DecodeKernel(DecodeSegmentsParams params, int slices,
                                                            int coefficient_row, Shape shape) {
  extern __shared__ uint4 shared[];
  __shared__ SliceBands slice;
  const PartView& part = params.part;
  const int tokens = shape.tokens();
  const int width = SliceChannels(tokens);
  const int index = static_cast<int>(blockIdx.x);
  const int head = index / slices % part.kv_heads;
  const int segment = index / slices / part.kv_heads;
  if (RotationOf(part, head) != nullptr) return;
  const int begin = index % slices * width;
  const int channels = min(width, part.head_dim - begin);
  const uint8_t* const payload = params.payloads[segment];
  auto* const tile = reinterpret_cast<uint8_t*>(shared);
  SliceCoefficients coefficients;
  coefficients.scale = reinterpret_cast<float*>(tile + TileBytes(tokens, shape.pitch()));
  coefficients.c = reinterpret_cast<uint16_t*>(coefficients.scale + width);
  coefficients.row = coefficient_row;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp == 0) FindBands(part, head, begin, begin + channels, &slice);
  __syncthreads();
  if (slice.spectral != 0) {
    LoadCoefficients(part, slice, begin, channels, payload, coefficients);
    __syncthreads();
    int turn = 0;
    for (int first = 0; first < channels; first += 8 * kTilesAtOnce) {
      const uint32_t spectral = slice.spectral >> first / 8 & ((1u << kTilesAtOnce) - 1);
      if (spectral == 0) continue;
      for (int token = 0; token < tokens; token += 16) {
        if (turn++ % kWarps != warp) continue;
        DecodeSpectral<kType>(shape, part, coefficients, slice.groups, spectral, token, first,
                              tile);
      }
    }
    __syncthreads();  // resident channels overwrite what was made for their neighbours' sake
  }
  const int lanes = shape.lanes();
  const int together = 32 / lanes;
  int turn = 0;
  for (int b = 0; b < slice.count; ++b) {
    const SliceBand& band = slice.bands[b];
    if (band.view.coefficients > 0) continue;
    const int units = (band.end - band.begin + together - 1) / together;
    for (int u = (warp + kWarps - turn % kWarps) % kWarps; u < units; u += kWarps) {
      const int j = band.begin + u * together + lane / lanes;
      if (j >= band.end) continue;
      const int channel = part.channels[band.view.channels + j] - begin;
      DecodeResidentOfBand<kType>(shape, band.view, j, lane % lanes, payload, tile + 2 * channel);
    }
    turn += units;
  }
  __syncthreads();
  CopyOut(shape, tile, channels, part.head_dim,
          params.dense[segment] + head * params.head_stride + begin);
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

template <ElementType kType, class Shape>
cudaError_t LaunchPlain(const DecodeSegmentsParams& params, const Shape& shape,
                        cudaStream_t stream) {
  const PartView& part = params.part;
  const int width = SliceChannels(shape.tokens());
  const int slices = (part.head_dim + width - 1) / width;
  const int row = (part.columns + 7) / 8 * 8;
  const int shared = TileBytes(shape.tokens(), shape.pitch()) + width * (4 + 2 * row);
  const auto kernel = DecodeKernel<kType, Shape>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  const auto blocks = static_cast<unsigned>(params.segments * part.kv_heads * slices);
  kernel<<<blocks, kThreads, shared, stream>>>(params, slices, row, shape);
  return cudaGetLastError();
}

template <ElementType kType>
cudaError_t Launch(const DecodeSegmentsParams& params, cudaStream_t stream) {
  const PartView& part = params.part;
  const int pitch = TilePitch(std::min(part.head_dim, SliceChannels(part.segment_tokens)));
  const cudaError_t status =
      part.segment_tokens == 256 && pitch == 17
          ? LaunchPlain<kType>(params, TileShape<256, 17>{}, stream)
          : LaunchPlain<kType>(params, TileShape<0, 0>{part.segment_tokens, pitch}, stream);
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
