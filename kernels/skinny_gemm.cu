#include <cudaTypedefs.h>

#include "kernels/dependent_launch.cuh"
#include "kernels/skinny_gemm.h"
#include "kernels/tensor_copy.cuh"
#include "kernels/wgmma.cuh"

namespace fourierkv::kernels {
namespace {

// A tile is 128 rows of weights, in groups of 16, by all rows of x. It is summed in steps of 64
// elements. All steps of all tiles stand on a line, which is cut into as many stretches as there
// are blocks: every block reads as much as every other. A block's last warp copies the operands of
// its steps into a ring in shared memory, as far ahead as that is large; two warp groups multiply,
// 64 rows each. What a block has of a tile that others have parts of is left in the workspace; the
// last of them adds the parts, in their order.
constexpr int kGroupRows = 16;
constexpr int kTileGroups = 8;
constexpr int kTileRows = kGroupRows * kTileGroups;
constexpr int kStepElements = 64;
constexpr int kRowBytes = kStepElements * 2;
constexpr int kSumWarps = 8;
constexpr int kThreads = 32 * (kSumWarps + 1);
constexpr int kWeightBytes = kTileRows * kRowBytes;
// More than half of what a multiprocessor has, so that none gets two blocks, and another none, of
// those that start while the kernel before is still running: it would take twice as long. Not all,
// since what is copied far ahead delays what the kernel before still has to read.
constexpr int kSharedBytes = 128 << 10;
constexpr int kSwizzleBytes = 1024;  // what addresses of operands are multiples of

// Of the ring: a stage has weights, then rows of x.
template <int kRows>
struct Ring {
  static constexpr int kStageBytes = kWeightBytes + kRows * kRowBytes;
  static constexpr int kStages = (kSharedBytes - kSwizzleBytes) / kStageBytes;
};

template <int kRows>
struct Job {
  CUtensorMap w;  // [groups][2][8][in], see WeightMap
  CUtensorMap x;  // [rows][in]
  void* y;
  float4* parts;    // [blocks][2][kSumWarps][kRows / 8][32]
  uint32_t* ready;  // [blocks][kSumWarps]: parts of the tile that begins in a block
  int64_t out;
  int groups;      // of 16 rows of w
  int tile_steps;  // in a tile
  int steps;       // of all tiles
  int rows;
  SkinnyGemmOutput output;

  // The first step of a block, and the block of a step.
  __device__ int FirstStep(int block) const {
    return static_cast<int>(int64_t{block} * steps / gridDim.x);
  }
  __device__ int BlockOf(int step) const {
    return static_cast<int>(((int64_t{step} + 1) * gridDim.x - 1) / steps);
  }
};

// Where warp `warp` of `block` leaves its part of a tile: the second place is for the tile that
// begins in the block and goes on behind it.
template <int kRows>
__device__ __forceinline__ float4* PartOf(const Job<kRows>& job, int block, bool begins, int warp) {
  const int64_t place = (int64_t{block} * 2 + (begins ? 1 : 0)) * kSumWarps + warp;
  return job.parts + place * (kRows / 8 * 32) + threadIdx.x % 32;
}

// Copies operands, by one thread.
template <int kRows>
class Copier {
 public:
  // Of `count` steps from `first` on.
  __device__ Copier(const Job<kRows>& job, int first, int count, std::byte* ring, uint64_t* full)
      : job_(job), first_(first), count_(count), ring_(ring), full_(full) {}

  // Weights, which do not depend on other kernels, as far as the ring is large.
  __device__ void Begin() {
    for (int i = 0; i < kStages && i < count_; ++i) CopyWeights(i);
  }

  // Rows of x, once they are there, and the other steps, as stages become free.
  __device__ void Run(uint64_t* empty) {
    WaitForPrerequisites();
    for (int i = 0; i < kStages && i < count_; ++i) CopyRows(i);
    for (int i = kStages; i < count_; ++i) {
      WaitForPhase(&empty[i % kStages], (i / kStages + 1) % 2);
      CopyWeights(i);
      CopyRows(i);
    }
  }

 private:
  static constexpr int kStages = Ring<kRows>::kStages, kStageBytes = Ring<kRows>::kStageBytes;

  __device__ void CopyWeights(int i) {
    const int stage = i % kStages;
    const int tile = (first_ + i) / job_.tile_steps, step = (first_ + i) % job_.tile_steps;
    ArriveAndExpect(&full_[stage], kStageBytes);
    CopyBox4(ring_ + stage * kStageBytes, job_.w, step * kStepElements, 0, 0, tile * kTileGroups,
             &full_[stage], policy_);
  }
  __device__ void CopyRows(int i) {
    const int stage = i % kStages, step = (first_ + i) % job_.tile_steps;
    CopyBox2(ring_ + stage * kStageBytes + kWeightBytes, job_.x, step * kStepElements, 0,
             &full_[stage]);
  }

  const Job<kRows>& job_;
  const int first_, count_;
  std::byte* const ring_;
  uint64_t* const full_;
  const uint64_t policy_ = ReadOncePolicy();
};

// Leaves the warp's part of the tile for the others. True if it was the last: then `sums` are those
// of all.
template <int kRows>
__device__ bool AddParts(const Job<kRows>& job, int tile, bool begins, float (&sums)[kRows / 2]) {
  const int warp = threadIdx.x / 32;
  float4* const mine = PartOf<kRows>(job, blockIdx.x, begins, warp);
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
    __stcg(mine + j * 32, {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]});
  }
  __threadfence();
  __syncwarp();
  const int first = job.BlockOf(tile * job.tile_steps);
  const int last = job.BlockOf((tile + 1) * job.tile_steps - 1);
  uint32_t before = 0;
  uint32_t* const ready = job.ready + first * kSumWarps + warp;
  if (threadIdx.x % 32 == 0) before = atomicAdd(ready, 1);
  before = __shfl_sync(0xffffffffu, before, 0);
  if (before != static_cast<uint32_t>(last - first)) return false;
  __threadfence();
#pragma unroll
  for (float& sum : sums) sum = 0;
  // Several are read at once.
  constexpr int kAtOnce = kRows <= 24 ? 4 : kRows <= 32 ? 2 : 1;
  for (int block = first; block <= last; block += kAtOnce) {
    float4 values[kAtOnce][kRows / 8];
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
      if (block + p > last) continue;
      const float4* const part = PartOf<kRows>(job, block + p, block + p == first, warp);
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) values[p][j] = __ldcg(part + j * 32);
    }
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
      if (block + p > last) continue;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
        sums[4 * j] += values[p][j].x;
        sums[4 * j + 1] += values[p][j].y;
        sums[4 * j + 2] += values[p][j].z;
        sums[4 * j + 3] += values[p][j].w;
      }
    }
  }
  if (threadIdx.x % 32 == 0) *ready = 0;
  return true;
}

// Of a group: what a lane has of the products of kRows rows.
template <int kRows>
__device__ void Write(const Job<kRows>& job, int group, float (&sums)[kRows / 2]) {
  const int lane = threadIdx.x % 32;
  const auto row_of = [&](int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; };
  const auto place_of = [&](int i) {
    return row_of(i) * job.out + group * kGroupRows + lane / 4 + i % 4 / 2 * 8;
  };
  if (job.output == SkinnyGemmOutput::kAddFloat) {
    // All are read before any is written, so that the reads do not wait for each other.
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      if (row_of(i) < job.rows) sums[i] += static_cast<const float*>(job.y)[place_of(i)];
    }
  }
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) {
    if (row_of(i) >= job.rows) continue;
    if (job.output == SkinnyGemmOutput::kSiluMul) {
      if (i % 4 >= 2) continue;
      const float gate = sums[i], up = sums[i + 2];
      static_cast<__nv_bfloat16*>(
          job.y)[row_of(i) * (job.out / 2) + group * (kGroupRows / 2) + lane / 4] =
          __float2bfloat16_rn(gate / (1.0f + __expf(-gate)) * up);
    } else if (job.output == SkinnyGemmOutput::kBf16) {
      static_cast<__nv_bfloat16*>(job.y)[place_of(i)] = __float2bfloat16_rn(sums[i]);
    } else {
      static_cast<float*>(job.y)[place_of(i)] = sums[i];
    }
  }
}

// What a warp of the two warp groups does.
template <int kRows>
__device__ void Multiply(const Job<kRows>& job, int first, int end, const std::byte* ring,
                         uint64_t* full, uint64_t* empty) {
  constexpr int kStages = Ring<kRows>::kStages, kStageBytes = Ring<kRows>::kStageBytes;
  WaitForPrerequisites();
  // From lane 0, so that the compiler knows that the warp does not diverge.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  int stage = 0;
  uint32_t parity = 0;
  for (int step = first; step < end;) {
    const int tile = step / job.tile_steps;
    const int tile_begin = tile * job.tile_steps, tile_end = tile_begin + job.tile_steps;
    const bool begins = step == tile_begin;
    const bool whole = begins && tile_end <= end;
    const int until = tile_end < end ? tile_end : end;
    float sums[kRows / 2] = {};
    for (; step < until; ++step) {
      WaitForPhase(&full[stage], parity);
      const uint32_t at = SharedAddress(ring) + stage * kStageBytes;
      const uint64_t w = SwizzledOperand(at + warp / 4 * (kWeightBytes / 2));
      const uint64_t x = SwizzledOperand(at + kWeightBytes);
      BeginProducts();
#pragma unroll
      for (int k = 0; k < kStepElements / 16; ++k) {
        AddProducts<kRows>(sums, w + k * 2, x + k * 2);
      }
      FinishProducts();
      if (lane == 0) Arrive(&empty[stage]);
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    const int group = tile * kTileGroups + warp;
    if (group >= job.groups) continue;
    if (whole || AddParts<kRows>(job, tile, begins, sums)) Write<kRows>(job, group, sums);
  }
}

// Has registers as if two blocks were to fit: a block of a small kernel then does.
template <int kRows>
__global__ __launch_bounds__(kThreads,
                             2) void SkinnyGemmKernel(const __grid_constant__ Job<kRows> job) {
  if constexpr (kHasWarpGroupProducts) {
    constexpr int kStages = Ring<kRows>::kStages;
    extern __shared__ std::byte shared[];
    __shared__ uint64_t full[kStages], empty[kStages];
    LetDependentsStart();
    std::byte* const ring =
        shared + (kSwizzleBytes - SharedAddress(shared) % kSwizzleBytes) % kSwizzleBytes;
    const int first = job.FirstStep(blockIdx.x), end = job.FirstStep(blockIdx.x + 1);
    Copier<kRows> copier(job, first, end - first, ring, full);
    const bool copies = threadIdx.x == 32 * kSumWarps;
    if (copies) {
      for (int stage = 0; stage < kStages; ++stage) {
        InitBarrier(&full[stage], 1);
        InitBarrier(&empty[stage], kSumWarps);
      }
      PublishBarriers();
      copier.Begin();
    }
    __syncthreads();
    if (copies) {
      copier.Run(empty);
    } else if (threadIdx.x / 32 < kSumWarps) {
      Multiply<kRows>(job, first, end, ring, full, empty);
    }
  }
}

using EncodeTiled = PFN_cuTensorMapEncodeTiled_v12000;

cudaError_t FindEncodeTiled(EncodeTiled* encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              12000, cudaEnableDefault, &found);
  if (status != cudaSuccess) return status;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  *encode = reinterpret_cast<EncodeTiled>(function);
  return cudaSuccess;
}

template <int kRank>
cudaError_t Encode(EncodeTiled encode, const uint16_t* matrix, const uint64_t (&sizes)[kRank],
                   const uint64_t (&strides)[kRank - 1], const uint32_t (&box)[kRank],
                   CUtensorMapL2promotion promotion, CUtensorMap* map) {
  uint32_t ones[kRank];
  for (uint32_t& one : ones) one = 1;
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<uint16_t*>(matrix), sizes,
             strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Groups of 16 rows, as two of eight: with kSiluMul eight of the first half of w's rows, and those
// of the second half that they are multiplied with. A lane then has sums of both.
cudaError_t WeightMap(EncodeTiled encode, const SkinnyGemmParams& params, CUtensorMap* map) {
  const auto in = static_cast<uint64_t>(params.in), out = static_cast<uint64_t>(params.out);
  const bool halves = params.output == SkinnyGemmOutput::kSiluMul;
  const uint64_t row = in * 2;
  return Encode<4>(encode, params.w, {in, 8, 2, out / 16},
                   {row, halves ? out / 2 * row : 8 * row, halves ? 8 * row : 16 * row},
                   {kStepElements, 8, 2, kTileGroups}, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, map);
}

template <int kRows>
cudaError_t Launch(const SkinnyGemmParams& params, int blocks, cudaStream_t stream) {
  Job<kRows> job = {};
  EncodeTiled encode = nullptr;
  cudaError_t status = FindEncodeTiled(&encode);
  if (status == cudaSuccess) status = WeightMap(encode, params, &job.w);
  if (status == cudaSuccess) {
    const auto in = static_cast<uint64_t>(params.in);
    status = Encode<2>(encode, params.x, {in, static_cast<uint64_t>(params.rows)}, {in * 2},
                       {kStepElements, kRows}, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, &job.x);
  }
  const auto kernel = SkinnyGemmKernel<kRows>;
  if (status == cudaSuccess) {
    status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  }
  if (status != cudaSuccess) return status;
  job.y = params.y;
  job.ready = static_cast<uint32_t*>(params.workspace);
  job.parts = reinterpret_cast<float4*>(job.ready + int64_t{blocks} * kSumWarps);
  job.out = params.out;
  job.groups = static_cast<int>(params.out / kGroupRows);
  job.tile_steps = static_cast<int>((params.in + kStepElements - 1) / kStepElements);
  job.steps = (job.groups + kTileGroups - 1) / kTileGroups * job.tile_steps;
  job.rows = params.rows;
  job.output = params.output;
  const auto grid = static_cast<unsigned>(job.steps < blocks ? job.steps : blocks);
  return LaunchDependent(kernel, grid, kThreads, kSharedBytes, stream, job);
}

bool Aligned(const void* pointer) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Blocks that run at once, one a multiprocessor; 0: the kernel does not run on this device.
cudaError_t Blocks(int* blocks) {
  int device = 0, major = 0, minor = 0;
  *blocks = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  if (status != cudaSuccess || major != 9 || minor != 0) return status;
  return cudaDeviceGetAttribute(blocks, cudaDevAttrMultiProcessorCount, device);
}

bool SizesFit(int64_t out, int64_t in, int64_t rows) {
  return rows >= 1 && rows <= kSkinnyGemmRows && out >= 16 && out <= (int64_t{1} << 24) &&
         out % 16 == 0 && in >= 8 && in <= (int64_t{1} << 19) && in % 8 == 0;
}

int64_t WorkspaceBytes(int blocks) {
  return int64_t{blocks} * kSumWarps * 4 +
         int64_t{blocks} * 2 * kTileRows * kSkinnyGemmRows * sizeof(float);
}

}  // namespace

bool SkinnyGemmFits(int64_t out, int64_t in, int64_t rows) {
  int blocks = 0;
  return SizesFit(out, in, rows) && Blocks(&blocks) == cudaSuccess && blocks > 0;
}

int64_t SkinnyGemmWorkspace() {
  int blocks = 0;
  return Blocks(&blocks) == cudaSuccess ? WorkspaceBytes(blocks) : 0;
}

cudaError_t LaunchSkinnyGemm(const SkinnyGemmParams& params, cudaStream_t stream) {
  if (!Aligned(params.w) || !Aligned(params.x) || !Aligned(params.y) ||
      !Aligned(params.workspace) || !SizesFit(params.out, params.in, params.rows)) {
    return cudaErrorInvalidValue;
  }
  int blocks = 0;
  if (const cudaError_t status = Blocks(&blocks); status != cudaSuccess) return status;
  if (blocks == 0) return cudaErrorNotSupported;
  if (params.workspace_bytes < WorkspaceBytes(blocks)) return cudaErrorInvalidValue;
  switch ((params.rows + 7) / 8) {
    case 1:
      return Launch<8>(params, blocks, stream);
    case 2:
      return Launch<16>(params, blocks, stream);
    case 3:
      return Launch<24>(params, blocks, stream);
    case 4:
      return Launch<32>(params, blocks, stream);
    default:
      return Launch<64>(params, blocks, stream);
  }
}

}  // namespace fourierkv::kernels
