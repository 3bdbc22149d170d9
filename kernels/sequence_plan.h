// How the three kernels of LaunchSequenceAttention share work and workspace.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/sequence_attention.h"

namespace fourierkv::kernels {

// The query heads of one KV head of one sequence ("row" batch index * kv_heads + head) are worked
// on by items: first of chunk_tokens tokens of the middle each, then of exact_chunk exact ones.
// Arrays are of the workspace; G = query heads per KV head.
struct SequencePlan {
  int32_t group;         // G
  int32_t chunk_tokens;  // a multiple of every window
  int32_t exact_chunk;   // a multiple of kPanelTokens
  int32_t middle_items;  // for max_middle_tokens
  int32_t exact_items;

  uint16_t* nodes;  // binary16 [rows][windows][G][r]: scores of K's spectral channels at the nodes
  float2* node_scales;  // [rows][G]: what to multiply them by, what to add
  float* sums;          // [rows][windows][G][r]: weights of tokens, brought to the nodes
  float* sum_maxima;    // [rows][windows][G]: what the scores were reduced by before, in bits
  float2* softmax;      // [rows][items][G]: maximum in bits and sum of an item
  float* outputs;       // [rows][items][G][head_dim]: residents in their order, or exact channels
  int64_t max_windows;

  int64_t bytes;
  bool early_launch;  // the device knows programmatic dependent launch

  __host__ __device__ int32_t items() const { return middle_items + exact_items; }
};

// Scores are in units of log2 ("bits"). Weights are 2^(score - maximum + kWeightBits), so that
// binary16 holds what is 2^-28 of the largest to 11 bits.
inline constexpr int kWeightBits = 14;

// Steps 1 and 2 of kernels/sequence_basis.h for K: queries to scores at nodes.
cudaError_t LaunchStatesToNodes(const SequenceAttentionParams& params, const SequencePlan& plan,
                                cudaStream_t stream);
// Step 3, residents, exact tokens and softmax.
cudaError_t LaunchTokens(const SequenceAttentionParams& params, const SequencePlan& plan,
                         cudaStream_t stream);
// The transposes of steps 2 and 1 for V, and everything put together.
int64_t NodesToOutputSharedBytes(const SequenceAttentionParams& params, const SequencePlan& plan);
cudaError_t LaunchNodesToOutput(const SequenceAttentionParams& params, const SequencePlan& plan,
                                cudaStream_t stream);

}  // namespace fourierkv::kernels
