// What items left to outputs: one block per KV head of a sequence.

#include "kernels/sequence_plan.h"
#include "kernels/sequence_products.cuh"
#include "kernels/sequence_tokens.cuh"
#include "kernels/sequence_transform.cuh"

namespace fourierkv::kernels {
namespace {

constexpr float kLn2 = 0.693147181f;

// Shared memory, followed by what Parts says.
template <int kGroup>
struct Shared {
  Grids<kGroup> grid;
  float maximum[kGroup];
  float sum[kGroup];         // of all weights, relative to 2^(maximum + kWeightBits) as all below
  float middle_sum[kGroup];  // of those in the middle
};

// float arrays behind Shared.
template <int kGroup>
struct Parts {
  float* out;      // [kGroup][head_dim]
  float* slices;   // [max(kTransformThreads * 4, kGroup * head_dim)]
  float* factors;  // [items][group]

  __host__ __device__ static int SliceValues(int head_dim) {
    return max(kTransformThreads * 4, kGroup * head_dim);
  }
  __device__ Parts(Shared<kGroup>& shared, int head_dim)
      : out(reinterpret_cast<float*>(&shared + 1)),
        slices(out + kGroup * head_dim),
        factors(slices + SliceValues(head_dim)) {}
  static int64_t Bytes(int head_dim, int group, int items) {
    return static_cast<int64_t>(sizeof(Shared<kGroup>)) +
           int64_t{4} * (kGroup * head_dim + SliceValues(head_dim) + group * items);
  }
};

// The items of a sequence: `middle` from 0 on, `exact` from first_exact on.
struct Items {
  int middle, exact, first_exact;

  __device__ int count() const { return middle + exact; }
  __device__ int index(int i) const { return i < middle ? i : i - middle + first_exact; }
};

// Maxima and sums of each query, and what each item's outputs count.
template <int kGroup>
__device__ void MergeSoftmax(const float2* softmax, int group, const Items& items,
                             Shared<kGroup>& shared, float* factors) {
  const int query = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (query >= group) return;
  float maximum = kNoScore;
  for (int i = lane; i < items.count(); i += 32) {
    maximum = fmaxf(maximum, softmax[items.index(i) * group + query].x);
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, i));
  float sum = 0, middle_sum = 0;
  for (int i = lane; i < items.count(); i += 32) {
    const float2 item = softmax[items.index(i) * group + query];
    const float factor = Exp2(item.x - maximum);
    factors[i * group + query] = factor;
    sum += factor * item.y;
    if (i < items.middle) middle_sum += factor * item.y;
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    sum += __shfl_xor_sync(~0u, sum, i);
    middle_sum += __shfl_xor_sync(~0u, middle_sum, i);
  }
  if (lane == 0) {
    shared.maximum[query] = maximum;
    shared.sum[query] = sum;
    shared.middle_sum[query] = middle_sum;
  }
}

// Sums items first .. first + count - 1 of outputs: slices[q][column] for the first `columns`.
// `columns` and head_dim are multiples of 4. All threads; they agree afterwards.
__device__ void AddItems(const float* outputs, const float* factors, int group, int head_dim,
                         int columns, int first_item, int first_factor, int count, float* slices) {
  const int quads = columns / 4, all = group * quads;
  const int slice_count = max(1, kTransformThreads / max(all, 1));
  for (int i = threadIdx.x; i < all * slice_count; i += kTransformThreads) {
    const int slice = i / all, query = i % all / quads, column = i % quads * 4;
    const float* at = outputs + static_cast<int64_t>(query) * head_dim + column;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int item = slice; item < count; item += slice_count) {
      const float4 x = __ldcs(reinterpret_cast<const float4*>(
          at + static_cast<int64_t>(first_item + item) * group * head_dim));
      const float factor = factors[(first_factor + item) * group + query];
      sum = make_float4(sum.x + factor * x.x, sum.y + factor * x.y, sum.z + factor * x.z,
                        sum.w + factor * x.w);
    }
    reinterpret_cast<float4*>(slices)[i] = sum;
  }
  __syncthreads();
  // In place: the first slice becomes the sum, always in the same order.
  for (int i = threadIdx.x; i < all * 4; i += kTransformThreads) {
    float sum = slices[i];
    for (int slice = 1; slice < slice_count; ++slice) sum += slices[slice * all * 4 + i];
    slices[i] = sum;
  }
  __syncthreads();
}

// The transpose of step 2: what the nodes of all windows bring to each cell of the grid.
template <int kGroup>
__device__ void GatherGrid(const SequenceRef& sequence, const float* sums, const float* maxima,
                           int group, Shared<kGroup>& shared) {
  const SequenceBasisView& basis = sequence.basis;
  const auto* starts = reinterpret_cast<const WindowStart*>(basis.data + basis.starts);
  const auto* cells = reinterpret_cast<const float*>(basis.data + basis.node_cells);
  const int nodes = basis.nodes;
  const int windows = (sequence.middle_tokens + basis.window_tokens - 1) / basis.window_tokens;
  const float per_window =
      static_cast<float>(basis.window_tokens) * kGridCells / static_cast<float>(basis.period);
  const float windows_per_cell = 1 / per_window;
  const float reach = kKernelCells / 2 + 0.01f;  // with room for rounding
  const float span = cells[nodes - 1];
  for (int i = threadIdx.x; i < kGridCells; i += kTransformThreads) {
    float2 sum[kGroup / 2] = {};
    // Windows stand in order, and the last may reach beyond the period.
    for (int turn = -1; turn <= 1; ++turn) {
      if (turn < 0 && i < kGridCells - kKernelCells) continue;
      const float at = static_cast<float>(i + turn * kGridCells);
      const float low = (at - reach - span) * windows_per_cell;
      const int last = min(static_cast<int>(floorf((at + reach) * windows_per_cell)), windows - 1);
      for (int window = max(static_cast<int>(ceilf(low)), 0); window <= last; ++window) {
        const WindowStart start = starts[window];
        // From this cell to the window's start, which is at most per_window + reach before it.
        constexpr int kAhead = 16;
        const int ahead =
            ((start.cell - i + kGridCells - kAhead) & (kGridCells - 1)) - (kGridCells - kAhead);
        const float begin = static_cast<float>(ahead) + start.fraction;
        float factor[kGroup];
#pragma unroll
        for (int q = 0; q < kGroup; ++q) {
          factor[q] = q < group ? Exp2(maxima[window * group + q] - shared.maximum[q]) : 0;
        }
        const float* at_window = sums + static_cast<int64_t>(window) * group * nodes;
        int node = 0;
        while (node < nodes && begin + cells[node + 3] <= -kKernelCells / 2) node += 4;
        for (; node < nodes && begin + cells[node] < kKernelCells / 2; node += 4) {
          const float4 cell = *reinterpret_cast<const float4*>(cells + node);
          const float4 phi = make_float4(GridKernel(begin + cell.x), GridKernel(begin + cell.y),
                                         GridKernel(begin + cell.z), GridKernel(begin + cell.w));
#pragma unroll
          for (int q = 0; q < kGroup; ++q) {
            if (q >= group) break;
            const float4 x = *reinterpret_cast<const float4*>(at_window + q * nodes + node);
            const float added = phi.x * x.x + phi.y * x.y + phi.z * x.z + phi.w * x.w;
            float2& to = sum[q / 2];
            (q % 2 == 0 ? to.x : to.y) += factor[q] * added;
          }
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < kGroup / 2; ++pair) shared.grid[pair][i] = sum[pair];
  }
}

// From the spectrum of first query + i second query to states, in place: [2][2 kMaxFrequencies]
// floats of each pair.
template <int kGroup>
__device__ void FillStates(const float* weights, int frequencies, Shared<kGroup>& shared) {
  const int k = threadIdx.x;
  const float weight = k < frequencies ? 0.5f * weights[k] : 0;
  float2 cosines[kGroup / 2], sines[kGroup / 2];
#pragma unroll
  for (int i = 0; i < kGroup / 2; ++i) {
    const float2 at = shared.grid[i][k], mirror = shared.grid[i][(kGridCells - k) % kGridCells];
    cosines[i] = make_float2(weight * (at.x + mirror.x), weight * (at.y + mirror.y));
    sines[i] = make_float2(weight * (mirror.y - at.y), weight * (at.x - mirror.x));
    if (k == 0) {
      // The constant needs no transform.
      cosines[i] = make_float2(2 * weight * shared.middle_sum[2 * i],
                               2 * weight * shared.middle_sum[2 * i + 1]);
      sines[i] = make_float2(0, 0);
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kGroup / 2; ++i) {
    float* states = StatesOf<kGroup>(shared.grid, 2 * i);
    float* second = StatesOf<kGroup>(shared.grid, 2 * i + 1);
    if (k < frequencies) {
      states[k] = cosines[i].x;
      states[frequencies + k] = sines[i].x;
      second[k] = cosines[i].y;
      second[frequencies + k] = sines[i].y;
    }
  }
  __syncthreads();
}

template <int kGroup, typename Coefficient>
__global__ void __launch_bounds__(kTransformThreads, kGroup == 4 ? 2 : 1)
    NodesToOutputKernel(const __grid_constant__ SequenceAttentionParams p,
                        const __grid_constant__ SequencePlan plan) {
  extern __shared__ __align__(16) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared<kGroup>*>(memory);
  const Parts<kGroup> parts(shared, p.head_dim);
  const int head = blockIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * p.kv_heads + head;
  const SequenceRef& sequence = p.sequences[blockIdx.y];
  const int group = plan.group, spectral = p.v.spectral[head];
  const Items items = {(sequence.middle_tokens + plan.chunk_tokens - 1) / plan.chunk_tokens,
                       (sequence.exact_tokens + plan.exact_chunk - 1) / plan.exact_chunk,
                       plan.middle_items};
  const bool through_states = items.middle > 0 && spectral > 0;
  if (through_states) {
    // While items are still being worked on.
    const auto* coefficients = static_cast<const uint8_t*>(p.sides[2 * row + 1].coefficients);
    const int bytes = spectral * 2 * p.frequencies * static_cast<int>(sizeof(Coefficient));
    for (int i = threadIdx.x * 128; i < bytes; i += kTransformThreads * 128) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(coefficients + i));
    }
  }
  WaitForPrerequisites();
  if (threadIdx.x < kGroup) {
    shared.maximum[threadIdx.x] = kNoScore;
    shared.sum[threadIdx.x] = shared.middle_sum[threadIdx.x] = 0;
  }
  __syncthreads();
  MergeSoftmax<kGroup>(plan.softmax + row * plan.items() * group, group, items, shared,
                       parts.factors);
  __syncthreads();

  const float* outputs = plan.outputs + row * plan.items() * group * p.head_dim;
  AddItems(outputs, parts.factors, group, p.head_dim, p.head_dim, items.first_exact, items.middle,
           items.exact, parts.slices);
  for (int i = threadIdx.x; i < group * p.head_dim; i += kTransformThreads) {
    parts.out[i] = parts.slices[i];
  }
  __syncthreads();
  const int residents = p.head_dim - spectral, columns = (residents + 15) / 16 * 16;
  if (items.middle > 0 && residents > 0) {
    AddItems(outputs, parts.factors, group, p.head_dim, columns, 0, 0, items.middle, parts.slices);
    for (int i = threadIdx.x; i < group * residents; i += kTransformThreads) {
      const int query = i / residents, j = i % residents;
      parts.out[query * p.head_dim + p.v.ids[head * p.head_dim + spectral + j]] +=
          parts.slices[query * columns + j];
    }
  }
  if (through_states) {
    GatherGrid<kGroup>(sequence, plan.sums + row * group * p.max_nodes,
                       plan.sum_maxima + row * group * plan.max_windows, group, shared);
    __syncthreads();
    Transform<false>(shared.grid);
    FillStates<kGroup>(reinterpret_cast<const float*>(sequence.basis.data + sequence.basis.weights),
                       p.frequencies, shared);
    const SequenceSide& side = p.sides[2 * row + 1];
    ProjectStates<kGroup>(
        static_cast<const Coefficient*>(side.coefficients), spectral, 2 * p.frequencies, group,
        shared.grid, [&](int query, int j, float value) {
          if (side.gain != nullptr) {
            value = side.gain[j] * value + side.gain[spectral + j] * shared.middle_sum[query];
          }
          parts.out[query * p.head_dim + p.v.ids[head * p.head_dim + j]] += value;
        });
  }
  __syncthreads();

  const int64_t first = row * group;  // query head
  for (int i = threadIdx.x; i < group * p.head_dim; i += kTransformThreads) {
    const float sum = shared.sum[i / p.head_dim];
    const float value = sum > 0 ? parts.out[i] / sum : 0;
    const int64_t at = first * p.head_dim + i;
    if (p.float_io) {
      static_cast<float*>(p.out)[at] = value;
    } else {
      const bool is_bf16 = p.dtype == ElementType::kBf16;
      static_cast<uint16_t*>(p.out)[at] = static_cast<uint16_t>(
          is_bf16 ? PackBf16(value, 0) : PackF16(fminf(fmaxf(value, -65504), 65504), 0));
    }
  }
  if (p.lse != nullptr && threadIdx.x < group) {
    const float sum = shared.sum[threadIdx.x];
    p.lse[first + threadIdx.x] =
        sum > 0 ? (shared.maximum[threadIdx.x] + log2f(sum) - kWeightBits) * kLn2 : -INFINITY;
  }
}

template <int kGroup>
int64_t SharedBytes(const SequenceAttentionParams& p, const SequencePlan& plan) {
  return Parts<kGroup>::Bytes(p.head_dim, plan.group, plan.items());
}

template <int kGroup, typename Coefficient>
cudaError_t Launch(const SequenceAttentionParams& p, const SequencePlan& plan,
                   cudaStream_t stream) {
  const auto bytes = static_cast<int>(SharedBytes<kGroup>(p, plan));
  const auto kernel = NodesToOutputKernel<kGroup, Coefficient>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  return LaunchDependentIf(plan.items() > 0 && plan.early_launch, kernel, dim3(p.kv_heads, p.batch),
                           kTransformThreads, bytes, stream, p, plan);
}

template <typename Coefficient>
cudaError_t Launch(const SequenceAttentionParams& p, const SequencePlan& plan,
                   cudaStream_t stream) {
  return plan.group <= 4   ? Launch<4, Coefficient>(p, plan, stream)
         : plan.group <= 8 ? Launch<8, Coefficient>(p, plan, stream)
                           : Launch<16, Coefficient>(p, plan, stream);
}

}  // namespace

int64_t NodesToOutputSharedBytes(const SequenceAttentionParams& params, const SequencePlan& plan) {
  return plan.group <= 4   ? SharedBytes<4>(params, plan)
         : plan.group <= 8 ? SharedBytes<8>(params, plan)
                           : SharedBytes<16>(params, plan);
}

cudaError_t LaunchNodesToOutput(const SequenceAttentionParams& params, const SequencePlan& plan,
                                cudaStream_t stream) {
  return params.coefficient_bits == 16 ? Launch<uint16_t>(params, plan, stream)
                                       : Launch<float>(params, plan, stream);
}

}  // namespace fourierkv::kernels
