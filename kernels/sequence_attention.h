// Attention of one new token of each sequence over its KV cache in the published form of
// FourierAttention (docs/faithful.md): spectral channels span the whole middle of a sequence. K and
// V are never rebuilt. docs/kernels_faithful.md explains how.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/segment_view.h"
#include "kernels/sequence_basis.h"

namespace fourierkv::kernels {

// Channels of K or V of one layer's heads. Device memory.
struct SequenceChannels {
  const int32_t* spectral;  // [kv_heads]: f of each head, 0 to head_dim
  // [kv_heads][head_dim]: ids of the head's f spectral channels, then of its head_dim - f resident
  // ones.
  const uint16_t* ids;
};

// K or V of one head of the middle of one sequence: device pointers, 16-byte aligned.
struct SequenceSide {
  const void* coefficients;   // [f][2 F], bf16 or float; not read if f is 0
  const float* gain;          // [f], behind it shift [f]; null: 1 and 0
  const uint16_t* residents;  // bf16 [head_dim - f][resident_stride]; not read if f is head_dim
};

// One layer of one sequence: n tokens in the middle, the others (sink, recent, new) exact. The
// sections of a payload (docs/format.md, section 8) but for the residents' rows, which stand
// resident_stride apart instead of n, so that the middle can grow.
struct SequenceRef {
  SequenceBasisView basis;    // of the sequence's period; not read if the middle is empty
  int32_t middle_tokens;      // n, at most the period
  int32_t exact_tokens;       // in any order
  int64_t resident_stride;    // in elements, a multiple of 8
  const uint16_t* exact_k;    // head h at + h * exact_head_stride: [exact_tokens][head_dim],
  const uint16_t* exact_v;    // 16-byte aligned
  int64_t exact_head_stride;  // in elements, a multiple of 8
};

struct SequenceAttentionParams {
  int32_t batch;             // sequences, 1 to 65535
  int32_t kv_heads;          // 1 to 256
  int32_t query_heads;       // a multiple of kv_heads; at most 16 to each
  int32_t head_dim;          // 64, 96, 128 or 256
  int32_t frequencies;       // F, as in every basis: a multiple of 8, 8 to kMaxFrequencies
  int32_t coefficient_bits;  // 16 (bf16) or 32 (float)
  ElementType dtype;         // of exact tokens, and of q and out unless they are float
  bool float_io;             // q and out are float instead of dtype
  float scale;               // of the scores: 1 / sqrt(head_dim) usually
  const void* q;             // [batch][query_heads][head_dim]
  void* out;                 // like q: softmax(scale q K) V
  float* lse;                // [batch][query_heads]: natural log of the softmax's sum; may be null

  SequenceChannels k;
  SequenceChannels v;
  const SequenceRef* sequences;  // [batch]. One without any token gives out 0 and lse -infinity
  const SequenceSide* sides;     // [batch][kv_heads][2]: K, V

  // No sequence has more; grid and workspace are made for these. Sequences may change between
  // replays of a captured graph within them.
  int32_t max_middle_tokens;  // 0 to 2^20
  int32_t max_exact_tokens;   // 0 to 2^20
  int64_t max_nodes;          // of SequenceBasisView::NodesFor(middle_tokens); a multiple of 16

  void* workspace;  // device memory, 256-byte aligned; need not be initialised
  int64_t
      workspace_bytes;  // at least SequenceAttentionWorkspace(); one launch at a time may use it
};

// Bytes of workspace that the sizes in `params` need on the current device; negative: no usable
// device, or sizes out of bounds. Pointers are not looked at.
int64_t SequenceAttentionWorkspace(const SequenceAttentionParams& params);

// Enqueues the attention of one layer: three kernels. Operands of tensor cores are rounded to 11
// bits or better, sums are float; results do not vary from run to run. All pointers are to device
// memory and must stay valid until the stream has run.
//
// Nothing is enqueued in case of
//   cudaErrorInvalidValue         null or misaligned pointers, sizes out of bounds, too little
//                                 workspace
//   cudaErrorNotSupported         a device older than compute capability 8.0, or with too little
//                                 shared memory for more than 8 query heads per KV head
// or what the runtime reports.
cudaError_t LaunchSequenceAttention(const SequenceAttentionParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
