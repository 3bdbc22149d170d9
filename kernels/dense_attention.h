// Attention of one new token of each sequence over pages of exact tokens only: as fast as memory
// gives them.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/fourier_attention.h"

namespace fourierkv::kernels {

struct DenseAttentionParams {
  int32_t batch;        // sequences, up to 65535
  int32_t kv_heads;     // up to 65535
  int32_t query_heads;  // a multiple of kv_heads; at most 8 to each
  int32_t head_dim;     // 64 or 128
  float scale;          // of the scores: 1 / sqrt(head_dim) usually
  const uint16_t* q;    // bf16 [batch][query_heads][head_dim]
  uint16_t* out;        // like q: softmax(scale q K) V; 0 for a sequence without pages

  // Of bf16. Sequence b has pages page_offsets[b] .. page_offsets[b + 1].
  const PageRef* pages;
  const int32_t* page_offsets;  // [batch + 1], increasing, first 0
  int64_t page_head_stride;     // in elements, a multiple of 8

  void* workspace;  // device memory, 16-byte aligned; one launch at a time may use it
  int64_t workspace_bytes;
};

// Whether LaunchDenseAttention takes these heads.
bool DenseAttentionFits(int32_t kv_heads, int32_t query_heads, int32_t head_dim);

// Bytes of workspace for `batch` sequences on the current device; negative: no usable device, or
// sizes that do not fit.
int64_t DenseAttentionWorkspace(int32_t batch, int32_t kv_heads, int32_t query_heads,
                                int32_t head_dim);

// Enqueues the attention of one layer. Weights of the softmax are rounded to bf16 for the product
// with V, sums are float; results do not vary from run to run. Pointers are to device memory and
// must stay valid until the stream has run; tables may change between replays of a captured graph.
// cudaErrorInvalidValue, with nothing enqueued, for null or misaligned pointers, sizes that do not
// fit and too little workspace; otherwise what the runtime reports.
cudaError_t LaunchDenseAttention(const DenseAttentionParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
