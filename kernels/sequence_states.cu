// Queries to scores at nodes: one block per KV head of a sequence.

#include "kernels/sequence_plan.h"
#include "kernels/sequence_products.cuh"
#include "kernels/sequence_tokens.cuh"
#include "kernels/sequence_transform.cuh"

namespace fourierkv::kernels {
namespace {

constexpr int kWarps = kTransformThreads / 32;
static_assert(kTransformThreads == kMaxFrequencies, "a thread has one frequency");
static_assert(kWarps == 16, "a warp for each query");

// Shared memory: grids of pairs of queries, then the queries, then numbers of each query.
template <int kGroup>
struct Shared {
  Grids<kGroup> grid;
  int largest[kGroup];  // bits of a float that is not negative
  float offset[kGroup];
  float queries[1][kGroup];  // [f]
};

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
    const float* states = StatesOf<kGroup>(shared.grid, 2 * i);
    const float* second = StatesOf<kGroup>(shared.grid, 2 * i + 1);
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
__global__ void __launch_bounds__(kTransformThreads, kGroup == 4 ? 2 : 1)
    StatesToNodesKernel(const __grid_constant__ SequenceAttentionParams p,
                        const __grid_constant__ SequencePlan plan) {
  extern __shared__ __align__(16) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared<kGroup>*>(memory);
  const int head = blockIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * p.kv_heads + head;
  const SequenceRef& sequence = p.sequences[blockIdx.y];
  LetDependentsStart();
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
                         2 * p.frequencies, shared.queries, shared.grid);
  __syncthreads();
  FillSpectrum<kGroup>(reinterpret_cast<const float*>(basis.data + basis.weights), p.frequencies,
                       shared);
  Transform<true>(shared.grid);
#pragma unroll
  for (int i = 0; i < kGroup / 2; ++i) {
    const float2* grid = shared.grid[i];
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
  const int nodes = basis.nodes, steps = nodes / kNodeStep;
  const int windows = (sequence.middle_tokens + basis.window_tokens - 1) / basis.window_tokens;
  const float windows_per_step = 1 / static_cast<float>(steps);
  auto* out = reinterpret_cast<__half*>(plan.nodes) + row * group * p.max_nodes;
  for (int i = threadIdx.x / kNodeStep; i < windows * steps; i += kTransformThreads / kNodeStep) {
    const int window = static_cast<int>((static_cast<float>(i) + 0.5f) * windows_per_step);
    const int node = (i - window * steps) * kNodeStep + threadIdx.x % kNodeStep;
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
