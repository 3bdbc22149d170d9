// The attention kernel; docs/kernels.md.

#pragma once

#include <cstdint>

#include "kernels/attention_entry.h"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_uniform_worker.cuh"
#include "kernels/attention_worker.cuh"
#include "kernels/dependent_launch.cuh"
#include "kernels/fourier_attention.h"

namespace fourierkv::kernels {

// Sequences without a single token, of which every worker takes some.
static __device__ __noinline__ void WriteEmpty(const KernelParams& params, int worker, int workers,
                                               int thread, int threads) {
  const FourierAttentionParams& user = params.user;
  WaitForPrerequisites();
  const int groups = params.groups;
  for (int b = worker; b < user.batch; b += workers) {
    const AttentionEntry& first =
        params.entries[params.workers + 2 * static_cast<int64_t>(b) * groups];
    if ((first.flags & kEmptyTokens) == 0) continue;
    const int values = user.query_heads * user.plan.head_dim;
    for (int i = 8 * thread; i < values; i += 8 * threads) {
      Results(user).Store(static_cast<int64_t>(b) * values + i, {});
    }
    if (user.lse == nullptr) continue;
    for (int i = thread; i < user.query_heads; i += threads) {
      user.lse[b * user.query_heads + i] = -INFINITY;
    }
  }
}

template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__global__ void __launch_bounds__(kAttentionThreads, kUniformBits == 16 ? 2 : 3)
    FourierAttentionKernel(const __grid_constant__ KernelParams params) {
  using AttentionWorker = Worker<kBlocks, kLogS, kType, kUniformBits>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t barriers[2 * kAttentionWarps];
  LetDependentsStart();
  const int warp = threadIdx.x >> 5;
  const int own = AttentionWorker::kWarps == 1 ? warp : 0;  // of the block's workers
  const int index = AttentionWorker::kWarps == 1 ? kAttentionWarps * blockIdx.x + own : blockIdx.x;
  if (index >= params.workers) return;
  if (__ldg(&params.entries[index].count) > 0) {
    AttentionWorker worker(params, shared + own * params.shared.worker_bytes, barriers + 2 * warp);
    worker.Work(index);
  }
  if ((__ldg(&params.entries[index].flags) & kSomeEmpty) != 0) {
    WriteEmpty(params, index, params.workers, threadIdx.x & (AttentionWorker::kThreads - 1),
               AttentionWorker::kThreads);
  }
}

using AttentionKernel = void (*)(KernelParams);

// Each in a source file of its own, as compiling them takes long.
AttentionKernel UniformKernel(ElementType type, int bits);
AttentionKernel Bf16Kernel(const AttentionPlanView& plan);
AttentionKernel Fp16Kernel(const AttentionPlanView& plan);

// For any basis_blocks of segments of kLogS tokens (0: any that a plan says).
template <ElementType kType, int kLogS>
AttentionKernel GenericAttentionKernel(const AttentionPlanView& plan) {
  if constexpr (kLogS == 8) {
    if (plan.basis_blocks == 0) return FourierAttentionKernel<0, kLogS, kType, 0>;
  }
  switch (plan.basis_blocks) {
    case 1:
      return FourierAttentionKernel<1, kLogS, kType, 0>;
    case 2:
      return FourierAttentionKernel<2, kLogS, kType, 0>;
    default:
      return FourierAttentionKernel<4, kLogS, kType, 0>;
  }
}

template <ElementType kType>
AttentionKernel UniformAttentionKernel(int bits) {
  switch (bits) {
    case 4:
      return FourierAttentionKernel<0, 8, kType, 4>;
    case 8:
      return FourierAttentionKernel<0, 8, kType, 8>;
    default:
      return FourierAttentionKernel<0, 8, kType, 16>;
  }
}

}  // namespace fourierkv::kernels
