// Queries to scores at nodes: one block per KV head of a sequence.

#include "kernels/sequence_plan.h"
#include "kernels/sequence_tokens.cuh"
#include "kernels/sequence_transform.cuh"

namespace fourierkv::kernels {
namespace {

constexpr int kWarps = kTransformThreads / 32;
static_assert(kTransformThreads == kMaxFrequencies, "a thread has two states, or one frequency");
static_assert(kWarps == 16, "a warp for each query");

// Shared memory: grids of pairs of queries, then the queries, then numbers of each query.
template <int kGroup>
struct Shared {
  float2 grid[kGroup / 2][kGridCells];
  int largest[kGroup];  // bits of a float that is not negative
  float offset[kGroup];
  float queries[1][kGroup];  // [f]
};

template <typename Coefficient>
__device__ __forceinline__ float2 LoadPair(const Coefficient* at);
template <>
__device__ __forceinline__ float2 LoadPair(const float* at) {
  return __ldcs(reinterpret_cast<const float2*>(at));
}
template <>
__device__ __forceinline__ float2 LoadPair(const uint16_t* at) {
  const uint32_t pair = __ldcs(reinterpret_cast<const uint32_t*>(at));
  return make_float2(LowBf16(pair), HighBf16(pair));
}

// x[j][q]: queries times gain, in units of log2, and offset[q] = sum_j query shift.
template <int kGroup>
__device__ void LoadQueries(const SequenceAttentionParams& p, int group, int64_t row, int head,
                            int spectral, const float* gain, Shared<kGroup>& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp >= kGroup) return;
  const Queries queries = {&p, row * group, group};
  float offset = 0;
  for (int j = lane; j < spectral; j += 32) {
    float x = warp < group ? queries.Load(warp, p.k.ids[head * p.head_dim + j]) : 0;
    if (gain != nullptr) {
      offset += x * gain[spectral + j];
      x *= gain[j];
    }
    shared.queries[j][warp] = x;
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) offset += __shfl_xor_sync(~0u, offset, i);
  if (lane == 0) {
    shared.offset[warp] = offset;
    shared.largest[warp] = 0;
  }
}

// C_K q of two neighbouring states to the first floats of each pair's grid: [2][2 kMaxFrequencies].
template <int kGroup, typename Coefficient>
__device__ void ProjectQueries(const Coefficient* coefficients, int spectral, int states,
                               Shared<kGroup>& shared) {
  const int state = 2 * threadIdx.x;
  float2 sum[kGroup] = {};
  if (state < states) {
    const Coefficient* at = coefficients + state;
#pragma unroll 16
    for (int j = 0; j < spectral; ++j) {
      const float2 c = LoadPair(at + static_cast<int64_t>(j) * states);
#pragma unroll
      for (int q = 0; q < kGroup; q += 4) {
        const float4 x = *reinterpret_cast<const float4*>(&shared.queries[j][q]);
        sum[q] = make_float2(sum[q].x + c.x * x.x, sum[q].y + c.y * x.x);
        sum[q + 1] = make_float2(sum[q + 1].x + c.x * x.y, sum[q + 1].y + c.y * x.y);
        sum[q + 2] = make_float2(sum[q + 2].x + c.x * x.z, sum[q + 2].y + c.y * x.z);
        sum[q + 3] = make_float2(sum[q + 3].x + c.x * x.w, sum[q + 3].y + c.y * x.w);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kGroup; ++q) {
    shared.grid[q / 2][q % 2 * kMaxFrequencies + threadIdx.x] = sum[q];
  }
}

// States to the spectrum of first query + i second query; state 0 goes to the offset.
template <int kGroup>
__device__ void FillSpectrum(const float* weights, int frequencies, Shared<kGroup>& shared) {
  const int k = threadIdx.x;
  float2 low[kGroup / 2], high[kGroup / 2];
  const float weight = k < frequencies ? weights[k] : 0;
#pragma unroll
  for (int i = 0; i < kGroup / 2; ++i) {
    low[i] = high[i] = make_float2(0, 0);
    if (k >= frequencies) continue;
    const auto* states = reinterpret_cast<const float*>(shared.grid[i]);
    const float* second = states + 2 * kMaxFrequencies;
    if (k == 0) {
      shared.offset[2 * i] += weight * states[0];
      shared.offset[2 * i + 1] += weight * second[0];
      continue;
    }
    // Each query is the real part of sum_k (a - i b) e^(i ...): half of that at k, half of its
    // conjugate at -k.
    const float a1 = states[k], b1 = states[frequencies + k];
    const float a2 = second[k], b2 = second[frequencies + k];
    low[i] = make_float2(0.5f * weight * (a1 + b2), 0.5f * weight * (a2 - b1));
    high[i] = make_float2(0.5f * weight * (a1 - b2), 0.5f * weight * (a2 + b1));
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kGroup / 2; ++i) {
    shared.grid[i][k] = low[i];
    shared.grid[i][kMaxFrequencies + k] = make_float2(0, 0);
    shared.grid[i][2 * kMaxFrequencies + k] = make_float2(0, 0);
    // k = 0 has no counterpart; its thread clears what is left.
    shared.grid[i][k == 0 ? 3 * kMaxFrequencies : kGridCells - k] = high[i];
  }
  __syncthreads();
}

template <int kGroup, typename Coefficient>
__global__ void __launch_bounds__(kTransformThreads)
    StatesToNodesKernel(const __grid_constant__ SequenceAttentionParams p,
                        const __grid_constant__ SequencePlan plan) {
  extern __shared__ __align__(16) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared<kGroup>*>(memory);
  const int head = blockIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * p.kv_heads + head;
  const SequenceRef& sequence = p.sequences[blockIdx.y];
  if (sequence.middle_tokens == 0) return;
  const int group = plan.group, spectral = p.k.spectral[head];
  if (spectral == 0) {
    if (threadIdx.x < group) plan.node_scales[row * group + threadIdx.x] = make_float2(0, 0);
    return;
  }
  const SequenceSide& side = p.sides[2 * row];
  const SequenceBasisView& basis = sequence.basis;
  LoadQueries<kGroup>(p, group, row, head, spectral, side.gain, shared);
  __syncthreads();
  ProjectQueries<kGroup>(static_cast<const Coefficient*>(side.coefficients), spectral,
                         2 * p.frequencies, shared);
  __syncthreads();
  FillSpectrum<kGroup>(reinterpret_cast<const float*>(basis.data + basis.weights), p.frequencies,
                       shared);
#pragma unroll
  for (int i = 0; i < kGroup / 2; ++i) {
    if (2 * i >= group) break;
    float2* grid = shared.grid[i];
    Transform<true>(grid);
    float2 largest = make_float2(0, 0);
    for (int j = threadIdx.x; j < kGridCells; j += kTransformThreads) {
      largest.x = fmaxf(largest.x, fabsf(grid[j].x));
      largest.y = fmaxf(largest.y, fabsf(grid[j].y));
    }
#pragma unroll
    for (int j = 16; j > 0; j /= 2) {
      largest.x = fmaxf(largest.x, __shfl_xor_sync(~0u, largest.x, j));
      largest.y = fmaxf(largest.y, __shfl_xor_sync(~0u, largest.y, j));
    }
    if (threadIdx.x % 32 == 0) {
      atomicMax(&shared.largest[2 * i], __float_as_int(largest.x));
      atomicMax(&shared.largest[2 * i + 1], __float_as_int(largest.y));
    }
  }
  __syncthreads();
  if (threadIdx.x < group) {
    plan.node_scales[row * group + threadIdx.x] =
        make_float2(__int_as_float(shared.largest[threadIdx.x]), shared.offset[threadIdx.x]);
  }

  // Values at nodes are at most about twice the grid's largest: sum_i phi(u - i) is 2.
  float inverse[kGroup];
#pragma unroll
  for (int q = 0; q < kGroup; ++q) {
    const float largest = __int_as_float(shared.largest[q]);
    inverse[q] = largest > 1e-30f ? 1 / largest : 0;
  }
  const auto* starts = reinterpret_cast<const WindowStart*>(basis.data + basis.starts);
  const auto* cells = reinterpret_cast<const float*>(basis.data + basis.node_cells);
  const int nodes = basis.nodes;
  const int total =
      (sequence.middle_tokens + basis.window_tokens - 1) / basis.window_tokens * nodes;
  auto* out = reinterpret_cast<__half*>(plan.nodes) + row * group * p.max_nodes;
  for (int i = threadIdx.x; i < total; i += kTransformThreads) {
    const int window = i / nodes, node = i % nodes;
    const WindowStart start = starts[window];
    const float at = start.fraction + cells[node];
    const float first = ceilf(at - kKernelCells / 2);
    const int cell = start.cell + static_cast<int>(first);
    float phi[kKernelCells];
#pragma unroll
    for (int j = 0; j < kKernelCells; ++j) phi[j] = GridKernel(first + static_cast<float>(j) - at);
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      float2 sum = make_float2(0, 0);
#pragma unroll
      for (int j = 0; j < kKernelCells; ++j) {
        const float2 x = shared.grid[pair][(cell + j) & (kGridCells - 1)];
        sum = make_float2(sum.x + phi[j] * x.x, sum.y + phi[j] * x.y);
      }
      __half* to = out + (static_cast<int64_t>(window) * group + 2 * pair) * nodes + node;
      if (2 * pair < group) to[0] = __float2half_rn(sum.x * inverse[2 * pair]);
      if (2 * pair + 1 < group) to[nodes] = __float2half_rn(sum.y * inverse[2 * pair + 1]);
    }
  }
}

template <int kGroup, typename Coefficient>
cudaError_t Launch(const SequenceAttentionParams& p, const SequencePlan& plan,
                   cudaStream_t stream) {
  const int bytes = static_cast<int>(sizeof(Shared<kGroup>)) +
                    p.head_dim * kGroup * static_cast<int>(sizeof(float));
  const auto kernel = StatesToNodesKernel<kGroup, Coefficient>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  kernel<<<dim3(p.kv_heads, p.batch), kTransformThreads, bytes, stream>>>(p, plan);
  return cudaGetLastError();
}

template <typename Coefficient>
cudaError_t Launch(const SequenceAttentionParams& p, const SequencePlan& plan,
                   cudaStream_t stream) {
  return plan.group <= 4   ? Launch<4, Coefficient>(p, plan, stream)
         : plan.group <= 8 ? Launch<8, Coefficient>(p, plan, stream)
                           : Launch<16, Coefficient>(p, plan, stream);
}

}  // namespace

cudaError_t LaunchStatesToNodes(const SequenceAttentionParams& params, const SequencePlan& plan,
                                cudaStream_t stream) {
  return params.coefficient_bits == 16 ? Launch<uint16_t>(params, plan, stream)
                                       : Launch<float>(params, plan, stream);
}

}  // namespace fourierkv::kernels
