// Attention to the middle of a sequence, which is never rebuilt as a whole.

#pragma once

#include <cstdint>

#include "compute/base/thread_pool.h"
#include "compute/sequence/sequence_middle.h"

namespace fourierkv {

// out[i][h] = softmax(scale * q[i][h] . K^) V^ over the k.tokens() tokens of the middle, all of
// which every query sees; lse[i][h] is the natural logarithm of the softmax's sum. q, out:
// [queries][query_heads][head_dim]; lse: [queries][query_heads]. Grouped-query attention: query
// head h reads KV head h / (query_heads / kv_heads).
//
// Scores are B (C_K q_F) + K_R q_R and outputs C_V^T (B^T p), V_R^T p (docs/math.md, section 3), or
// with K^ and V^ rebuilt one tile at a time, whichever takes fewer multiplications for the number
// of queries and channels of a head.
//
// Requires at least one token, k and v of the same layer with the same basis and tokens, and
// query_heads a multiple of kv_heads.
void AttendToMiddle(const SequenceMiddle& k, const SequenceMiddle& v, int queries, int query_heads,
                    float scale, const float* q, float* out, float* lse, ThreadPool& pool);

}  // namespace fourierkv
