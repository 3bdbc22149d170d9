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

struct DecodeState {
  SliceBands slice;
  uint16_t ids[SliceChannels(0)];  // of the slice's channels, in the order of the bands
};

// Starts bringing a head's payload to the second-level cache.
__device__ __forceinline__ void Prefetch(const PartView& part, const SliceBands& slice,
                                         const uint8_t* payload) {
  constexpr int kLine = 128;
  const BandView& last = slice.bands[slice.count - 1].view;
  const BandView& first = slice.bands[0].view;
  const int64_t begin = first.bits == 16 ? first.data_offset : first.scale_offset;
  const int64_t end = last.data_offset + DataBytes(last, part.segment_tokens);
  for (int64_t at = begin + kLine * static_cast<int>(threadIdx.x); at < end;
       at += kLine * kThreads) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(payload + at));
  }
}

// Channels [begin, begin + channels) of a head to the tile.
template <ElementType kType, class Shape>
__device__ __forceinline__ void DecodeSlice(const PartView& part, const Shape& shape,
                                            const DecodeState& state, int channels,
                                            const uint8_t* payload,
                                            const SliceCoefficients& coefficients, uint8_t* tile) {
  const SliceBands& slice = state.slice;
  const int tokens = shape.tokens();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (slice.spectral != 0) {
    LoadCoefficients(slice, state.ids, payload, coefficients);
    __syncthreads();
    int turn = 0;
    for (int first = 0; first < channels; first += 8 * kTilesAtOnce) {
      const uint32_t spectral = slice.spectral >> first / 8 & ((1u << kTilesAtOnce) - 1);
      if (spectral == 0) continue;
      const bool all = channels - first >= 8 * kTilesAtOnce;
      for (int token = 0; token < tokens; token += 16) {
        if (turn++ % kWarps != warp) continue;
        if (all) {  // without branches, making what is not needed costs less than not making it
          DecodeSpectral<true, kType>(shape, part, coefficients, slice.groups, spectral, token,
                                      first, tile);
        } else {
          DecodeSpectral<false, kType>(shape, part, coefficients, slice.groups, spectral, token,
                                       first, tile);
        }
      }
    }
  }
  __syncthreads();  // resident channels overwrite what was made for their neighbours' sake
  const int lanes = shape.lanes();
  const int together = 32 / lanes;
  int turn = 0;
  for (int b = 0; b < slice.count; ++b) {
    const SliceBand& band = slice.bands[b];
    if (band.view.coefficients > 0) continue;
    const int count = band.end - band.begin;
    const int units = (count + together - 1) / together;
    for (int u = (warp + kWarps - turn % kWarps) % kWarps; u < units; u += kWarps) {
      const int j = u * together + lane / lanes;
      if (j >= count) continue;
      DecodeResidentOfBand<kType>(shape, band.view, band.begin + j, lane % lanes, payload,
                                  tile + 2 * state.ids[band.first + j]);
    }
    turn += units;
  }
  __syncthreads();
}

template <ElementType kType, class Shape>
__global__ __launch_bounds__(kThreads, 3) void DecodeKernel(DecodeSegmentsParams params, int slices,
                                                            int coefficient_row, Shape shape) {
  extern __shared__ uint4 shared[];
  __shared__ DecodeState state;
  const PartView& part = params.part;
  const int width = SliceChannels(shape.tokens());
  auto* const tile = reinterpret_cast<uint8_t*>(shared);
  SliceCoefficients coefficients;
  coefficients.c = reinterpret_cast<uint16_t*>(tile + TileBytes(shape.tokens(), shape.pitch()));
  coefficients.row = coefficient_row;
  coefficients.scale = reinterpret_cast<float*>(coefficients.c + width * coefficient_row);

  const int of_segment = part.kv_heads * slices;
  int described = -1;  // which head and slice `state` is about: usually the same for all of a block
  for (int index = static_cast<int>(blockIdx.x); index < params.segments * of_segment;
       index += static_cast<int>(gridDim.x)) {
    const int within = index % of_segment;
    const int head = within / slices;
    if (RotationOf(part, head) != nullptr) continue;
    const int segment = index / of_segment;
    const int begin = within % slices * width;
    const int channels = min(width, part.head_dim - begin);
    const uint8_t* const payload = params.payloads[segment];
    const int next = segment + static_cast<int>(gridDim.x) / of_segment;
    const uint8_t* const next_payload = params.payloads[min(next, params.segments - 1)];
    if (described != within) {
      if (threadIdx.x < 32) {
        FindBands(part, head, begin, begin + channels, &state.slice, state.ids);
      }
      __syncthreads();
      described = within;
    }
    Prefetch(part, state.slice, next_payload);
    DecodeSlice<kType>(part, shape, state, channels, payload, coefficients, tile);
    uint16_t* const out = params.dense[segment] + head * params.head_stride + begin;
    ForEachPiece(shape, part.head_dim, shape.tokens(), channels, [tile, out](int place, int at) {
      *reinterpret_cast<uint4*>(out + at) = *reinterpret_cast<const uint4*>(tile + place);
    });
    __syncthreads();
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

template <ElementType kType, class Shape>
cudaError_t LaunchPlain(const DecodeSegmentsParams& params, const Shape& shape,
                        cudaStream_t stream) {
  const PartView& part = params.part;
  const int width = SliceChannels(shape.tokens());
  const int slices = (part.head_dim + width - 1) / width;
  const int row = (part.columns + 7) / 8 * 8;
  const int shared = TileBytes(shape.tokens(), shape.pitch()) + width * (4 + 2 * row);
  const auto kernel = DecodeKernel<kType, Shape>;
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
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared);
  if (status != cudaSuccess) return status;
  // If all blocks have as many tiles of one head only, they need not look it up again.
  const int of_segment = part.kv_heads * slices;
  int grid = std::min(params.segments * of_segment, processors * std::max(blocks, 1));
  if (grid > of_segment) grid -= grid % of_segment;
  kernel<<<grid, kThreads, shared, stream>>>(params, slices, row, shape);
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
