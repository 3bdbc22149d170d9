// Encoding: a block takes a head of a segment (or as many of its channels as fit) into shared
// memory, whence tensor cores project it on the basis and warps quantise its resident channels.

#include <algorithm>

#include "kernels/encode_report.cuh"
#include "kernels/encode_segments.h"
#include "kernels/slice_bands.cuh"
#include "kernels/unusual_values.cuh"

namespace fourierkv::kernels {
namespace codec {
namespace {

struct TileState {
  SliceBands slice;
  uint16_t ids[SliceChannels(0)];  // of the slice's channels, in the order of the bands
  int32_t large;
  int32_t normal;
  int32_t found[2];  // by ExamineUnusual
  double sums[2 * kWarps];
};

template <ElementType kType, class Shape>
__global__ __launch_bounds__(kThreads, 3) void EncodeKernel(EncodeSegmentsParams params,
                                                            EncodeWorkspace workspace,
                                                            Shape shape) {
  extern __shared__ uint4 shared[];
  __shared__ TileState state;
  const PartView& part = params.part;
  const int tokens = shape.tokens();
  const int width = SliceChannels(tokens);
  // A block stays with a slice of a head.
  const int of_segment = part.kv_heads * workspace.slices;
  const int within = static_cast<int>(blockIdx.x) % of_segment;
  const int head = within / workspace.slices;
  const int slice = within - head * workspace.slices;
  const int begin = slice * width;
  const int channels = min(width, part.head_dim - begin);
  if (RotationOf(part, head) != nullptr) return;
  const int step = static_cast<int>(gridDim.x) / of_segment;
  int segment = static_cast<int>(blockIdx.x) / of_segment;
  if (segment >= params.segments) return;

  auto* const tile_bytes = reinterpret_cast<uint8_t*>(shared);
  const uint32_t tile = SharedAddress(shared);
  const int c_row = width + 8;  // no bank conflicts between rows
  auto* const energy = reinterpret_cast<float*>(tile_bytes + TileBytes(tokens, shape.pitch()));
  float* const c = energy + width;  // [groups * 8][c_row]
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int lanes = shape.lanes();
  const int together = 32 / lanes;  // channels that a warp quantises at once
  const auto start = [&](const uint16_t* dense) {
    StartLoad(shape, tile, dense + head * params.head_stride + begin, part.head_dim, tokens,
              channels);
  };

  start(params.dense[segment]);
  if (warp == 0) {
    FindBands(part, head, begin, begin + channels, &state.slice, state.ids);
    if (lane == 0) state.large = state.normal = 0;
  }
  while (true) {
    uint8_t* const payload = params.payloads[segment];
    const int next = segment + step;
    const bool more = next < params.segments;
    const uint16_t* const next_dense = params.dense[more ? next : segment];
    WaitForCopies<0>();
    __syncthreads();

    Totals totals;
    int turn = 0;  // units of work so far; a warp takes every kWarps-th
    for (int b = 0; b < state.slice.count; ++b) {
      const SliceBand& band = state.slice.bands[b];
      if (band.view.coefficients > 0) continue;
      const int units = (band.end - band.begin + together - 1) / together;
      for (int u = (warp + kWarps - turn % kWarps) % kWarps; u < units; u += kWarps) {
        const int j = band.begin + u * together + lane / lanes;
        const bool active = j < band.end;
        const int mine = active ? j : band.end - 1;
        const int channel = state.ids[band.first + mine - band.begin];
        EncodeResidentOfBand(TileChannel<kType, Shape>(tile_bytes + 2 * channel, shape), band.view,
                             mine, active, lane % lanes, lanes, payload, &totals);
      }
      turn += units;
    }
    // All channels, for the sake of their squares.
    for (int from = 0; from < channels; from += 16) {
      if (turn++ % kWarps != warp) continue;
      ProjectChannels<kType>(shape, tile + 2 * from, channels - from >= 16 ? 2 : 1, workspace.basis,
                             state.slice.groups, 0, tokens / 16, false, {c + from, c_row, 1},
                             energy + from, &totals);
    }
    if (totals.large) state.large = 1;
    if (totals.normal) state.normal = 1;
    __syncthreads();

    const bool unusual = state.large != 0 || state.normal == 0;
    if (!unusual && more) start(next_dense);  // nobody needs the tile any more
    static_assert(SliceChannels(0) <= kThreads);
    if (static_cast<int>(threadIdx.x) < channels) totals.energy += energy[threadIdx.x];
    for (int b = 0; b < state.slice.count; ++b) {
      const SliceBand& band = state.slice.bands[b];
      if (band.view.coefficients == 0) continue;
      for (int j = band.begin + static_cast<int>(threadIdx.x); j < band.end; j += kThreads) {
        const int channel = state.ids[band.first + j - band.begin];
        // By Parseval's theorem, the rest is what the coefficients leave out.
        float rest = energy[channel];
        const float rounding = StoreCoefficients(band.view, j, c + channel, c_row, payload, &rest);
        totals.error += rounding + fmaxf(0.0f, rest);
      }
    }
    if (begin == 0 && warp == kWarps - 2) ZeroPadding(part, state.slice, payload);
    TilePartial partial = {0, 0, kNone};
    if (unusual) {
      __syncthreads();
      ExamineUnusual<kType>(params, segment, head, begin, begin + channels, nullptr, &totals,
                            state.found);
      partial.refused = state.found[0];
      if (more) start(next_dense);
    }
    SumTotals(&totals, state.sums);
    if (warp == kWarps - 1) {
      if (lane == 0) state.large = state.normal = 0;  // everybody has read them
      partial.energy = totals.energy;
      partial.error = totals.error;
      HandIn(params, workspace, segment, head, slice, 1, partial);
    }
    if (!more) return;
    segment = next;
  }
}

// The basis as BasisOperands say; thread i makes those of one lane of one step of one group.
template <ElementType kType>
__device__ uint4 PrepareBasis(const PartView& part, int i) {
  const int steps = part.segment_tokens / 16;
  const int lane = i % 32;
  const int m = i / 32 / steps * 8 + lane / 4;
  const int t = i / 32 % steps * 16 + 2 * (lane % 4);
  const float factor = BasisFactor(m, part.segment_tokens);
  const auto value = [&](int token) {
    return m < part.columns ? part.basis[m * part.segment_tokens + token] * factor : 0.0f;
  };
  const SplitPair<kType> near(value(t), value(t + 1));
  const SplitPair<kType> far(value(t + 8), value(t + 9));
  return {near.high, near.middle, far.high, far.middle};
}

// Rotations as EncodeWorkspace says; thread i makes those of one lane of one column of one step.
template <ElementType kType>
__device__ void PrepareRotation(const PartView& part, int i, const EncodeWorkspace& workspace) {
  const int d = part.head_dim;
  const int steps = (d + 15) / 16;
  const int position = i / 4 % d;
  const int head = i / 4 / d / steps;
  const float* const u = part.rotations[head];
  if (u == nullptr) return;
  const int channel = part.channels[head * d + position];
  const int row = i / 4 / d % steps * 16 + 2 * (i % 4);
  float high[4], low[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int r = row + (e & 1) + 4 * (e & 2);
    const float value = r < d ? rintf(u[static_cast<int64_t>(r) * d + channel] * 32767.0f) : 0.0f;
    high[e] = 256.0f * rintf(value / 256.0f);
    low[e] = value - high[e];
    if (r < d) {
      workspace.columns[(static_cast<int64_t>(head) * d + r) * d + position] =
          static_cast<int16_t>(value);
    }
  }
  workspace.rotations[i] = {
      Element<kType>::Pack(high[0], high[1]), Element<kType>::Pack(high[2], high[3]),
      Element<kType>::Pack(low[0], low[1]), Element<kType>::Pack(low[2], low[3])};
}

template <ElementType kType>
__global__ void PrepareKernel(EncodeSegmentsParams params, EncodeWorkspace workspace) {
  const PartView& part = params.part;
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int stride = static_cast<int>(gridDim.x * blockDim.x);
  for (int i = first; i < params.segments; i += stride) workspace.finished[i] = 0;
  const int basis = workspace.groups * part.segment_tokens / 16 * 32;
  for (int i = first; i < basis; i += stride) {
    workspace.basis[i] = PrepareBasis<kType>(part, i);
  }
  if (part.rotations == nullptr) return;
  const int rotations = part.kv_heads * ((part.head_dim + 15) / 16) * part.head_dim * 4;
  for (int i = first; i < rotations; i += stride) PrepareRotation<kType>(part, i, workspace);
}

bool ValidSizes(const PartView& part, int32_t segments) {
  const int s = part.segment_tokens;
  return segments >= 1 && segments <= 65535 && part.kv_heads >= 1 && part.kv_heads <= 256 &&
         part.head_dim >= 8 && part.head_dim <= 512 && part.head_dim % 8 == 0 &&
         (s == 128 || s == 256 || s == 512 || s == 1024) && part.columns >= 1 && part.columns <= 64;
}

template <typename T>
bool Aligned(const T* pointer, uintptr_t bytes) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

bool Valid(const EncodeSegmentsParams& params) {
  const PartView& part = params.part;
  return ValidSizes(part, params.segments) && Aligned(part.basis, 4) && Aligned(part.bands, 8) &&
         Aligned(part.head_bands, 4) && Aligned(part.channels, 2) && Aligned(params.dense, 8) &&
         Aligned(params.payloads, 8) && Aligned(params.reports, 4) &&
         Aligned(params.workspace, 256) && params.head_stride % 8 == 0 &&
         params.head_stride >= static_cast<int64_t>(part.segment_tokens) * part.head_dim &&
         params.payload_bytes >= 16 && params.payload_bytes % 16 == 0 &&
         (params.dtype == ElementType::kBf16 || params.dtype == ElementType::kFp16);
}

// Where everything is in a workspace at `base`.
EncodeWorkspace LayOut(const PartView& part, int32_t segments, void* base) {
  EncodeWorkspace workspace = {};
  workspace.groups = (part.columns + 7) / 8;
  const int width = SliceChannels(part.segment_tokens);
  workspace.slices = (part.head_dim + width - 1) / width;
  const auto take = [&](int64_t bytes) {
    const int64_t at = workspace.bytes;
    workspace.bytes += (bytes + 255) / 256 * 256;
    return reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(at);
  };
  const int64_t operands = static_cast<int64_t>(workspace.groups) * part.segment_tokens / 16 * 32;
  workspace.basis = reinterpret_cast<uint4*>(take(operands * 16));
  workspace.finished = reinterpret_cast<uint32_t*>(take(int64_t{4} * segments));
  workspace.partials = reinterpret_cast<TilePartial*>(take(
      static_cast<int64_t>(sizeof(TilePartial)) * segments * part.kv_heads * workspace.slices));
  if (part.rotations != nullptr) {
    const int64_t d = part.head_dim;
    workspace.columns = reinterpret_cast<int16_t*>(take(part.kv_heads * d * d * 2));
    workspace.rotations =
        reinterpret_cast<uint4*>(take(part.kv_heads * ((d + 15) / 16) * d * 4 * 16));
  }
  return workspace;
}

template <ElementType kType, class Shape>
cudaError_t LaunchPlain(const EncodeSegmentsParams& params, const EncodeWorkspace& workspace,
                        const Shape& shape, int processors, cudaStream_t stream) {
  const int width = SliceChannels(shape.tokens());
  const int shared =
      TileBytes(shape.tokens(), shape.pitch()) + 4 * (width + workspace.groups * 8 * (width + 8));
  const auto kernel = EncodeKernel<kType, Shape>;
  cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  int blocks = 0;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared);
  if (status != cudaSuccess) return status;
  const int of_segment = params.part.kv_heads * workspace.slices;
  const int step = std::clamp(processors * blocks / of_segment, 1, params.segments);
  kernel<<<step * of_segment, kThreads, shared, stream>>>(params, workspace, shape);
  return cudaGetLastError();
}

template <ElementType kType>
cudaError_t Launch(const EncodeSegmentsParams& params, cudaStream_t stream) {
  const PartView& part = params.part;
  int device = 0;
  int processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  const EncodeWorkspace workspace = LayOut(part, params.segments, params.workspace);
  PrepareKernel<kType><<<std::min(processors, 64), 256, 0, stream>>>(params, workspace);
  status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  const int pitch = TilePitch(std::min(part.head_dim, SliceChannels(part.segment_tokens)));
  if (part.segment_tokens == 256 && pitch == 17) {
    status = LaunchPlain<kType>(params, workspace, TileShape<256, 17>{}, processors, stream);
  } else {
    status = LaunchPlain<kType>(params, workspace, TileShape<0, 0>{part.segment_tokens, pitch},
                                processors, stream);
  }
  if (status != cudaSuccess || part.rotations == nullptr) return status;
  return LaunchEncodeRotated(params, workspace, stream);
}

}  // namespace
}  // namespace codec

int64_t EncodeSegmentsWorkspace(const PartView& part, int32_t segments) {
  return codec::ValidSizes(part, segments) ? codec::LayOut(part, segments, nullptr).bytes : 0;
}

cudaError_t LaunchEncodeSegments(const EncodeSegmentsParams& params, cudaStream_t stream) {
  if (!codec::Valid(params)) return cudaErrorInvalidValue;
  return params.dtype == ElementType::kBf16 ? codec::Launch<ElementType::kBf16>(params, stream)
                                            : codec::Launch<ElementType::kFp16>(params, stream);
}

}  // namespace fourierkv::kernels
