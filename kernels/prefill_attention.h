// Attention of many query tokens of one sequence over 16-bit keys and values, on tensor cores.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

// Up to kDenseTileTokens consecutive tokens of one layer. Head h at + h * head_stride:
// [tokens][head_dim], 16-byte aligned.
struct DenseTile {
  const uint16_t* k;
  const uint16_t* v;
  int64_t head_stride;  // in elements, a multiple of 8
  int64_t first;        // tokens in all tiles before this one
  int32_t tokens;       // 1 to kDenseTileTokens
  int32_t reserved;
};
inline constexpr int kDenseTileTokens = 64;

struct PrefillAttentionParams {
  int32_t kv_heads;
  int32_t query_heads;  // a multiple of kv_heads; any number to each
  int32_t head_dim;     // a multiple of 8, at most 512; 64, 96, 128 and 256 waste nothing
  int32_t query_tokens;
  ElementType dtype;  // of keys and values, and of q and out unless they are float
  bool float_io;      // q and out are float instead of dtype
  float scale;        // of the scores: 1 / sqrt(head_dim) usually

  // The tokens attended to, `tokens` in all. Order matters only for the last query_tokens of them,
  // which are the queries' own: query i does not see the last query_tokens - 1 - i.
  const DenseTile* tiles;
  int32_t tile_count;
  int64_t tokens;  // at least query_tokens

  // Query head h of token i at + i * stride + h * head_dim.
  const void* q;
  void* out;           // softmax(scale q K) V
  int64_t q_stride;    // in elements, a multiple of 8, at least query_heads * head_dim
  int64_t out_stride;  // likewise
  float* lse;          // [query_tokens][query_heads]: natural log of the softmax's sum; may be null
};

// Enqueues the attention of one layer. Operands of tensor cores, weights of the softmax included,
// are of type dtype (float queries are rounded to it, and saturate); sums are float; results do not
// vary from run to run. All pointers are to device memory, 16-byte aligned, and must stay valid
// until the stream has run.
//
// Nothing is enqueued in case of
//   cudaErrorInvalidValue   null or misaligned pointers, sizes out of bounds
//   cudaErrorNotSupported   a device older than compute capability 8.0
// or what the runtime reports.
cudaError_t LaunchPrefillAttention(const PrefillAttentionParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
