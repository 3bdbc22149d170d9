// Tokens of one layer held as received: K and V in 16 bits, growing at the end.

#pragma once

#include <cstdint>
#include <memory>

#include "compute/backend/compute_backend.h"
#include "compute/base/geometry.h"
#include "compute/base/unique_id.h"

namespace fourierkv {

// K and V of one layer for `tokens()` tokens, each [kv_heads][capacity][head_dim]. Indices are
// positions in this store, which equal positions in the sequence only until Erase is first used.
//
// Not thread safe. Pointers from block() stay valid until tokens are added beyond capacity() or
// erased.
class ExactLayer {
 public:
  ExactLayer(int kv_heads, int head_dim, KvDtype dtype);

  int64_t tokens() const { return tokens_; }
  int64_t capacity() const { return capacity_; }

  // Room for `tokens` in all, so that nothing moves until they are exceeded.
  void Reserve(int64_t tokens);

  // Drops every token from index `tokens` on, or adds uninitialised ones up to it.
  void Resize(int64_t tokens);

  // Overwrites [first, first + n), which must exist, rounding to the store's type.
  // k, v: [n][kv_heads][head_dim], token by token as the model computes them.
  void WriteTokens(int64_t first, int64_t n, const float* k, const float* v);

  // The same from K and V in the store's type: [kv_heads][n][head_dim], as segments are
  // transmitted.
  void WriteHeads(int64_t first, int64_t n, const uint16_t* k, const uint16_t* v);

  // Removes [first, first + n); what stands behind moves down.
  void Erase(int64_t first, int64_t n);

  // Keeps its version while tokens are only added at the end.
  ExactBlock block() const;

 private:
  uint16_t* at(uint16_t* data, int head, int64_t token) const {
    return data + (head * capacity_ + token) * head_dim_;
  }
  void Grow(int64_t capacity);
  void NoteWrite(int64_t first, int64_t n);

  int kv_heads_;
  int head_dim_;
  KvDtype dtype_;
  int64_t tokens_ = 0;
  int64_t capacity_ = 0;
  // Changes whenever tokens do that may have been read under it: those before written_.
  uint64_t version_ = NextUniqueId();
  int64_t written_ = 0;
  std::unique_ptr<uint16_t[]> k_;
  std::unique_ptr<uint16_t[]> v_;
};

}  // namespace fourierkv
