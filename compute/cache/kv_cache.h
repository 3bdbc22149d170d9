// The model runner's view of its KV cache.

#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "compute/base/geometry.h"

namespace fourierkv {

// Of any cache.
struct CacheStats {
  int64_t exact_tokens = 0;
  int64_t compact_segments = 0;
  int64_t exact_inside = 0;   // exact segments among the compact ones
  int64_t exact_bytes = 0;    // of exact tokens
  int64_t compact_bytes = 0;  // of compact segments, headers included
  int64_t dense_bytes = 0;    // what all tokens would take in a dense cache
};

// The cache of one sequence. The runner calls, for each chunk of n tokens and each layer in order:
// Append, then Attend. One thread at a time.
class KvCache {
 public:
  virtual ~KvCache() = default;

  virtual const KvGeometry& geometry() const = 0;

  // Tokens whose KV is complete in every layer, i.e. the position of the next token.
  virtual int64_t length() const = 0;

  // Bytes that the cache holds now, all layers (payloads and headers; not bookkeeping).
  virtual int64_t bytes() const = 0;

  // Adds n tokens to `layer`. k (after RoPE) and v: [n][kv_heads][head_dim].
  // ResourceExhausted when the cache's capacity is reached.
  virtual absl::Status Append(int layer, int n, const float* k, const float* v) = 0;

  // Causal attention of the last n appended tokens over everything before and including themselves.
  // q, out: [n][query_heads][head_dim].
  virtual absl::Status Attend(int layer, int n, int query_heads, const float* q, float* out) = 0;

  // Called after the last layer of a chunk of n tokens: length() grows by n. A compact cache seals
  // segments here.
  virtual absl::Status Advance(int n) = 0;
};

}  // namespace fourierkv
