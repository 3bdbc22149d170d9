// The published method, written plainly: what the attention of kernels/sequence_attention.h is
// compared with. A baseline for benchmarks, not part of the product.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/sequence_attention.h"

namespace fourierkv {

// Bytes of workspace that LaunchRebuildAttention needs for these sizes.
int64_t RebuildAttentionWorkspace(const kernels::SequenceAttentionParams& params);

// The same result as kernels::LaunchSequenceAttention, for head_dim up to 128, coefficients in bf16
// and q and out in float: every query head rebuilds K and V tile by tile with the inverse
// transform, 2 F multiply-adds an element, and attends to what it has rebuilt. `circle`: (cos, sin)
// of 2 pi i / P for i = 0 .. P - 1, of every sequence: [batch] pointers in device memory. Of
// `params` the workspace has another size than there. cudaErrorInvalidValue for anything else.
cudaError_t LaunchRebuildAttention(const kernels::SequenceAttentionParams& params,
                                   const float2* const* circle, cudaStream_t stream);

}  // namespace fourierkv
