// What a Llama-architecture model computes beside matrix products and attention, on the GPU.
//
// Rows are tokens: consecutive ones of one sequence, or one of each of several. The hidden state
// and what is added to it are float; what goes into a matrix product is bf16. All pointers are to
// device memory, 16-byte aligned, and must stay valid until the stream has run. Every launcher
// gives cudaErrorInvalidValue, with nothing enqueued, for null or misaligned pointers and sizes out
// of bounds; otherwise what the runtime reports.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/fourier_attention.h"

namespace fourierkv::kernels {

// x[i] = embeddings[tokens[i]]. `embeddings` is bf16 [vocab][hidden], x [rows][hidden]; hidden is a
// multiple of 8. Ids are the caller's to check.
cudaError_t LaunchEmbedTokens(const uint16_t* embeddings, const int32_t* tokens, int32_t rows,
                              int32_t hidden, float* x, cudaStream_t stream);

// y = x / sqrt(mean(x^2) + eps) * weight for each row of `size`, a multiple of 8; y is bf16.
cudaError_t LaunchRmsNorm(const float* x, const float* weight, float eps, int32_t rows,
                          int32_t size, uint16_t* y, cudaStream_t stream);

// table[i] = cos(positions[i] frequencies[d]), then sin, for d < pairs: [rows][2][pairs]. Angles
// are float64, as those of compute/model/rope.h.
cudaError_t LaunchRopeTable(const int32_t* positions, const double* frequencies, int32_t rows,
                            int32_t pairs, float* table, cudaStream_t stream);

struct RopeAppendParams {
  int32_t rows;
  int32_t query_heads;
  int32_t kv_heads;
  int32_t head_dim;          // a multiple of 8
  const float* qkv;          // [rows][query_heads + 2 kv_heads][head_dim]: q, k, v
  const float* rope;         // what LaunchRopeTable made
  const int32_t* positions;  // [rows], not negative
  const int32_t* row_pages;  // [rows]: index of a row's page in `pages`
  PageRef* pages;            // of one layer; what they point to is written
  int64_t page_head_stride;  // in elements, a multiple of 8
  uint16_t* q;               // bf16 [rows][query_heads][head_dim]
};

// Rotates queries and keys in the rotate-half form (pairs d, d + head_dim / 2), writes queries to
// q, and keys and values as token `position mod kPageTokens` of the rows' pages, whose counts of
// tokens grow to include them. Rounds to bf16, to nearest even.
cudaError_t LaunchRopeAppend(const RopeAppendParams& params, cudaStream_t stream);

// out = silu(gate) * up: gate_up is bf16 [rows][2][size], out bf16 [rows][size], size a multiple of
// 8. silu(x) = x / (1 + exp(-x)).
cudaError_t LaunchSiluMul(const uint16_t* gate_up, int32_t rows, int32_t size, uint16_t* out,
                          cudaStream_t stream);

// The likeliest token of a row.
struct TokenChoice {
  int32_t token;          // the smallest id among equals; -1: some logit is not finite
  float log_probability;  // natural
};

// choices[i] of logits[i]: [rows][vocab].
cudaError_t LaunchChooseTokens(const float* logits, int32_t rows, int32_t vocab,
                               TokenChoice* choices, cudaStream_t stream);

}  // namespace fourierkv::kernels
