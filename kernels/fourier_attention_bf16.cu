// Kernels for all other heads, with pages of bf16.

#include "kernels/fourier_attention_kernel.cuh"

namespace fourierkv::kernels {

AttentionKernel Bf16Kernel(const AttentionPlanView& plan) {
  return plan.segment_tokens == kUnitTokens ? GenericAttentionKernel<ElementType::kBf16, 8>(plan)
                                            : GenericAttentionKernel<ElementType::kBf16, 0>(plan);
}

}  // namespace fourierkv::kernels
