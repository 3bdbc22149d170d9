#include "kernels/dependent_launch.cuh"
#include "kernels/mma.cuh"
#include "kernels/skinny_gemm.h"

namespace fourierkv::kernels {
namespace {

// A block computes groups of 16 or 32 outputs for all rows. Its warps share the sums: step i of
// warp w is 32 elements at (i * kWarps + w) * 32, read by its lanes straight into the operands of
// tensor cores, some steps ahead, across groups. Within a step elements are permuted alike in
// both operands, so that a lane's 16 bytes of a row are parts of operands of two products.
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStep = 32;
constexpr int kDepthOfOne = 8;                           // with one tile of 16 in a group
constexpr int kDepthOfTwo = 4;                           // as registers allow
constexpr int kMultiple = kStep * kWarps * kDepthOfOne;  // of `in`

// Not .nc: x may have been written by a kernel that ran when this one started.
__device__ __forceinline__ uint4 Load(const uint16_t* from) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// kRowTiles: rows / 8, rounded up. kTiles: tiles of 16 outputs in a group; with kSiluMul two, of
// both halves.
template <int kRowTiles, int kTiles, SkinnyGemmOutput kOutput>
__global__ __launch_bounds__(kThreads, 1) void SkinnyGemmKernel(SkinnyGemmParams params) {
  constexpr int kSums = kTiles * kRowTiles * 4;  // of a lane
  __shared__ float partial[kWarps][kSums][32];
  LetDependentsStart();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t in = params.in;
  const int steps = static_cast<int>(in / (kStep * kWarps));  // of a warp and group
  const int tiles = static_cast<int>(params.out / 16);
  const int groups = (tiles + kTiles - 1) / kTiles;
  constexpr bool kHalves = kOutput == SkinnyGemmOutput::kSiluMul;
  // Of the group's tile `m`; one past the end is read as the last and not written.
  const auto tile_of = [&](int group, int m) {
    if (kHalves) return group + m * (tiles / 2);
    const int tile = group * kTiles + m;
    return tile < tiles ? tile : tiles - 1;
  };
  const int64_t offset = warp * kStep + lane % 4 * 8;

  constexpr int kDepth = kTiles == 1 ? kDepthOfOne : kDepthOfTwo;
  uint4 w[kDepth][kTiles][2];
  int ahead_group = blockIdx.x, ahead_step = 0;  // what is loaded next
  const auto load_ahead = [&](uint4(&to)[kTiles][2]) {
    if (ahead_group >= groups) return;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const uint16_t* row = params.w + (int64_t{tile_of(ahead_group, m)} * 16 + lane / 4) * in +
                            offset + int64_t{ahead_step} * (kStep * kWarps);
      to[m][0] = LoadOnce(row);
      to[m][1] = LoadOnce(row + 8 * in);
    }
    if (++ahead_step == steps) {
      ahead_step = 0;
      ahead_group += gridDim.x;
    }
  };
#pragma unroll
  for (int d = 0; d < kDepth; ++d) load_ahead(w[d]);

  // Row lane / 4 of every eight; those past the end repeat the last.
  const uint16_t* x[kRowTiles];
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    const int row = n * 8 + lane / 4;
    x[n] = params.x + int64_t{row < params.rows ? row : params.rows - 1} * in + offset;
  }
  uint4 operand[kDepth][kRowTiles];
  const auto load_rows = [&](uint4(&to)[kRowTiles], int step) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) to[n] = Load(x[n] + int64_t{step} * (kStep * kWarps));
  };
  WaitForPrerequisites();
#pragma unroll
  for (int d = 0; d < kDepth; ++d) load_rows(operand[d], d);

  for (int group = blockIdx.x; group < groups; group += gridDim.x) {
    float sums[kTiles][kRowTiles][4] = {};
    for (int step = 0; step < steps; step += kDepth) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int n = 0; n < kRowTiles; ++n) {
            const uint4& a = w[d][m][0];
            const uint4& b = w[d][m][1];
            const uint4& c = operand[d][n];
            MmaBf16(sums[m][n], a.x, b.x, a.y, b.y, c.x, c.y);
            MmaBf16(sums[m][n], a.z, b.z, a.w, b.w, c.z, c.w);
          }
        }
        load_ahead(w[d]);
        // Behind the group's last step come the same rows again.
        const int ahead = step + d + kDepth;
        load_rows(operand[d], ahead < steps ? ahead : ahead - steps);
      }
    }

#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          partial[warp][(m * kRowTiles + n) * 4 + i][lane] = sums[m][n][i];
        }
      }
    }
    __syncthreads();
    constexpr int kOfTile = kRowTiles * 4 * 32;  // sums of a tile, all lanes
    for (int i = threadIdx.x; i < (kHalves ? kOfTile : kTiles * kOfTile); i += kThreads) {
      const auto total = [&](int at) {
        float sum = 0;
#pragma unroll
        for (int source = 0; source < kWarps; ++source) sum += partial[source][at / 32][at % 32];
        return sum;
      };
      const int m = i / kOfTile, n = i / 128 % kRowTiles, reg = i / 32 % 4, of_lane = i % 32;
      const int row = n * 8 + of_lane % 4 * 2 + reg % 2;
      const int tile = kHalves ? group : group * kTiles + m;
      const int64_t column = int64_t{tile} * 16 + of_lane / 4 + reg / 2 * 8;
      if (row >= params.rows || tile >= tiles) continue;
      const float sum = total(i);
      if constexpr (kHalves) {
        const float value = sum / (1.0f + __expf(-sum)) * total(i + kOfTile);
        static_cast<__nv_bfloat16*>(params.y)[row * (params.out / 2) + column] =
            __float2bfloat16_rn(value);
      } else if constexpr (kOutput == SkinnyGemmOutput::kBf16) {
        static_cast<__nv_bfloat16*>(params.y)[row * params.out + column] = __float2bfloat16_rn(sum);
      } else if constexpr (kOutput == SkinnyGemmOutput::kFloat) {
        static_cast<float*>(params.y)[row * params.out + column] = sum;
      } else {
        static_cast<float*>(params.y)[row * params.out + column] += sum;
      }
    }
    __syncthreads();
  }
}

// Tiles of 16 outputs in a group: two where that leaves no more work for the busiest of `blocks`.
int TilesOfGroup(int64_t tiles, int64_t blocks) {
  const int64_t with_one = (tiles + blocks - 1) / blocks;
  const int64_t with_two = 2 * (((tiles + 1) / 2 + blocks - 1) / blocks);
  return with_two <= with_one + (with_one >= 16 ? 1 : 0) ? 2 : 1;
}

template <int kRowTiles, int kTiles, SkinnyGemmOutput kOutput>
cudaError_t LaunchGroups(const SkinnyGemmParams& params, int64_t groups, int multiprocessors,
                         cudaStream_t stream) {
  const auto kernel = SkinnyGemmKernel<kRowTiles, kTiles, kOutput>;
  // The rows are read for every group: as many of them as can be shall stay in the first cache.
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxL1);
  if (status != cudaSuccess) return status;
  const auto grid = static_cast<unsigned>(groups < multiprocessors ? groups : multiprocessors);
  return LaunchDependent(kernel, grid, kThreads, 0, stream, params);
}

template <int kRowTiles, SkinnyGemmOutput kOutput>
cudaError_t Launch(const SkinnyGemmParams& params, int multiprocessors, cudaStream_t stream) {
  const int64_t tiles = params.out / 16;
  if (kOutput == SkinnyGemmOutput::kSiluMul || TilesOfGroup(tiles, multiprocessors) == 2) {
    return LaunchGroups<kRowTiles, 2, kOutput>(params, (tiles + 1) / 2, multiprocessors, stream);
  }
  if constexpr (kOutput != SkinnyGemmOutput::kSiluMul) {
    return LaunchGroups<kRowTiles, 1, kOutput>(params, tiles, multiprocessors, stream);
  }
  return cudaErrorInvalidValue;
}

template <int kRowTiles>
cudaError_t Launch(const SkinnyGemmParams& params, int multiprocessors, cudaStream_t stream) {
  switch (params.output) {
    case SkinnyGemmOutput::kBf16:
      return Launch<kRowTiles, SkinnyGemmOutput::kBf16>(params, multiprocessors, stream);
    case SkinnyGemmOutput::kFloat:
      return Launch<kRowTiles, SkinnyGemmOutput::kFloat>(params, multiprocessors, stream);
    case SkinnyGemmOutput::kAddFloat:
      return Launch<kRowTiles, SkinnyGemmOutput::kAddFloat>(params, multiprocessors, stream);
    case SkinnyGemmOutput::kSiluMul:
      return Launch<kRowTiles, SkinnyGemmOutput::kSiluMul>(params, multiprocessors, stream);
  }
  return cudaErrorInvalidValue;
}

bool Aligned(const void* pointer) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace

bool SkinnyGemmFits(int64_t out, int64_t in, int64_t rows, SkinnyGemmOutput output) {
  return rows >= 1 && rows <= kSkinnyGemmRows && out >= 16 && out <= (int64_t{1} << 30) &&
         out % (output == SkinnyGemmOutput::kSiluMul ? 32 : 16) == 0 && in >= kMultiple &&
         in <= (int64_t{1} << 30) && in % kMultiple == 0;
}

cudaError_t LaunchSkinnyGemm(const SkinnyGemmParams& params, cudaStream_t stream) {
  if (!Aligned(params.w) || !Aligned(params.x) || !Aligned(params.y) ||
      !SkinnyGemmFits(params.out, params.in, params.rows, params.output)) {
    return cudaErrorInvalidValue;
  }
  int device = 0, multiprocessors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status != cudaSuccess) return status;
  switch ((params.rows - 1) / 8) {
    case 0:
      return Launch<1>(params, multiprocessors, stream);
    case 1:
      return Launch<2>(params, multiprocessors, stream);
    case 2:
      return Launch<3>(params, multiprocessors, stream);
    default:
      return Launch<4>(params, multiprocessors, stream);
  }
}

}  // namespace fourierkv::kernels
