// How one layer's compact segments are walked by the attention kernel: what to copy, chunk by
// chunk, and what each chunk means. Made once for a layer of a profile, on the host.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

// Everything the kernel must know of a layer's profile: a buffer in device memory, which holds the
// structures of attention_program.h, and where they stand in it.
struct AttentionPlanView {
  const uint8_t* data;  // device memory, 16-byte aligned; all offsets are bytes from here
  int64_t bytes;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t segment_tokens;
  int32_t programs;       // offset of the heads' programs, one behind the other ...
  int32_t program_bytes;  // ... so many bytes apart
  int32_t k_small_bytes;  // what the largest head copies at once: coefficients, scales, offsets
  int32_t v_small_bytes;
  int32_t k_chunks;  // of the head with most chunks of 16 channels
  int32_t v_chunks;
  int32_t slot_bytes;    // what the largest step copies
  int32_t basis_blocks;  // 0: M is at most 8 everywhere; otherwise ceil(M / 16): 1, 2 or 4
  int32_t k_basis;       // offset of the basis as operands for scores
  int32_t v_basis;       // offset of the basis as operands for weights
  int32_t uniform_bits;  // 4, 8 or 16: every head is as UniformPart says, of so many bits; 0: not
  int32_t k_uniform_bytes;  // of what a uniform part needs in shared memory
  int32_t v_uniform_bytes;
  int32_t v_factors;       // offset of uniform heads' factors of the basis for weights: f32[8]
  int32_t k_order;         // offset of uniform heads' orders of queries ...
  int32_t k_order_bytes;   // ... so many bytes apart
  int32_t k_query_bytes;   // that four heads' queries need in shared memory, and ...
  int32_t v_output_bytes;  // ... their outputs; of uniform heads
  int32_t k_rotated;       // 1: some head's K is rotated; queries are then rotated by a launch of
                           // their own
  int32_t v_rotated;
  int32_t segment_cost;  // time that 256 compact tokens of a head take, against ...
  int32_t page_cost;     // ... a page of exact ones
};

// `k` and `v` have pointers to host memory. Unless the result, which says why the kernel cannot run
// such segments, is not empty, `buffer` is to be copied to device memory and `view` is complete but
// for `data`.
std::string BuildAttentionPlan(const PartView& k, const PartView& v, std::vector<uint8_t>* buffer,
                               AttentionPlanView* view);

}  // namespace fourierkv::kernels
