// One warp, one item: some tokens of the middle or some exact tokens of one KV head.

#include "kernels/sequence_exact.cuh"
#include "kernels/sequence_middle.cuh"
#include "kernels/sequence_plan.h"
#include "kernels/sequence_tokens.cuh"

namespace fourierkv::kernels {
namespace {

template <int kDim, int kColumns>
constexpr int SharedBytes() {
  return kStages * kTileBytes + kDim / 16 * kColumns * 32 * static_cast<int>(sizeof(uint4));
}

template <int kDim, int kColumns>
constexpr int BlocksPerMultiprocessor() {
  return kColumns == 1 && kDim <= 128 ? 14 : kDim == 64 ? 12 : 8;
}

template <int kDim, int kColumns>
__global__ void __launch_bounds__(32, BlocksPerMultiprocessor<kDim, kColumns>())
    TokensKernel(const __grid_constant__ SequenceAttentionParams p,
                 const __grid_constant__ SequencePlan plan) {
  extern __shared__ __align__(128) uint8_t shared[];
  const SequenceRef& sequence = p.sequences[blockIdx.y];
  LetDependentsStart();
  // Exact tokens first: they do not need the kernel before.
  int item = static_cast<int>(blockIdx.z);
  if (item < plan.exact_items) {
    if (static_cast<int64_t>(item) * plan.exact_chunk >= sequence.exact_tokens) return;
    ExactItem<kDim, kColumns>(p, plan, sequence, item, shared);
  } else {
    item -= plan.exact_items;
    if (static_cast<int64_t>(item) * plan.chunk_tokens >= sequence.middle_tokens) return;
    MiddleItem<kDim, kColumns>(p, plan, sequence, item, shared);
  }
}

template <int kDim, int kColumns>
cudaError_t Launch(const SequenceAttentionParams& p, const SequencePlan& plan,
                   cudaStream_t stream) {
  constexpr int kShared = SharedBytes<kDim, kColumns>();
  return LaunchDependentIf(plan.middle_items > 0 && plan.early_launch, TokensKernel<kDim, kColumns>,
                           dim3(p.kv_heads, p.batch, plan.items()), 32, kShared, stream, p, plan);
}

template <int kDim>
cudaError_t Launch(const SequenceAttentionParams& p, const SequencePlan& plan,
                   cudaStream_t stream) {
  return plan.group <= 8 ? Launch<kDim, 1>(p, plan, stream) : Launch<kDim, 2>(p, plan, stream);
}

}  // namespace

cudaError_t LaunchTokens(const SequenceAttentionParams& params, const SequencePlan& plan,
                         cudaStream_t stream) {
  switch (params.head_dim) {
    case 64:
      return Launch<64>(params, plan, stream);
    case 96:
      return Launch<96>(params, plan, stream);
    case 128:
      return Launch<128>(params, plan, stream);
    default:
      return Launch<256>(params, plan, stream);
  }
}

}  // namespace fourierkv::kernels
