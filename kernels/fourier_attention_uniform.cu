// Kernels for uniform heads.

#include "kernels/fourier_attention_kernel.cuh"

namespace fourierkv::kernels {

AttentionKernel UniformKernel(ElementType type, int bits) {
  return type == ElementType::kBf16 ? UniformAttentionKernel<ElementType::kBf16>(bits)
                                    : UniformAttentionKernel<ElementType::kFp16>(bits);
}

}  // namespace fourierkv::kernels
