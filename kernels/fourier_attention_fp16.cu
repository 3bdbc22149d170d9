// Kernels for all other heads, with pages of fp16.

#include "kernels/fourier_attention_kernel.cuh"

namespace fourierkv::kernels {

AttentionKernel Fp16Kernel(const AttentionPlanView& plan) {
  return plan.segment_tokens == kUnitTokens ? GenericAttentionKernel<ElementType::kFp16, 8>(plan)
                                            : GenericAttentionKernel<ElementType::kFp16, 0>(plan);
}

}  // namespace fourierkv::kernels
