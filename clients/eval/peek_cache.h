// Tokens behind the end of a cache that is not changed by them.

#pragma once

#include <cstdint>
#include <vector>

#include "compute/cache/kv_cache.h"

namespace fourierkv {

// Reads through to another cache and holds what is advanced itself, so that many continuations of
// one cache can be tried: nothing is ever sealed or kept by the base. Works on any cache whose
// chunks may be abandoned before Advance, as FillableKvCache's may. One thread at a time.
class PeekCache final : public KvCache {
 public:
  // `base` must outlive this cache and not be used otherwise between its calls.
  explicit PeekCache(KvCache& base);

  const KvGeometry& geometry() const override { return base_.geometry(); }
  int64_t length() const override { return base_.length() + tokens_; }
  int64_t bytes() const override { return base_.bytes(); }
  absl::Status Append(int layer, int n, const float* k, const float* v) override;
  absl::Status Attend(int layer, int n, int query_heads, const float* q, float* out) override {
    return base_.Attend(layer, n, query_heads, q, out);
  }
  absl::Status Advance(int n) override;

  // Forgets all but the first `tokens` of what was advanced here.
  void Rewind(int64_t tokens);

 private:
  // Of one layer, [tokens][kv_heads][head_dim]: what was advanced, then what is pending.
  struct Layer {
    std::vector<float> k, v;
  };

  KvCache& base_;
  const int64_t token_size_;
  int64_t tokens_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace fourierkv
