#include "clients/eval/peek_cache.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace fourierkv {

PeekCache::PeekCache(KvCache& base)
    : base_(base),
      token_size_(int64_t{base.geometry().kv_heads} * base.geometry().head_dim),
      layers_(base.geometry().layers) {}

absl::Status PeekCache::Append(int layer, int n, const float* k, const float* v) {
  if (layer < 0 || layer >= geometry().layers || n < 1) {
    return absl::InvalidArgumentError(absl::StrCat("Append of ", n, " tokens to layer ", layer));
  }
  const auto add = [&](std::vector<float>& to, const float* from) {
    to.resize(tokens_ * token_size_);
    to.insert(to.end(), from, from + n * token_size_);
  };
  add(layers_[layer].k, k);
  add(layers_[layer].v, v);
  return base_.Append(layer, static_cast<int>(tokens_ + n), layers_[layer].k.data(),
                      layers_[layer].v.data());
}

absl::Status PeekCache::Advance(int n) {
  const auto expected = static_cast<size_t>((tokens_ + n) * token_size_);
  for (const Layer& layer : layers_) {
    if (n < 1 || layer.k.size() != expected) {
      return absl::FailedPreconditionError(
          absl::StrCat("Advance by ", n, " tokens that were not appended to every layer"));
    }
  }
  tokens_ += n;
  return absl::OkStatus();
}

void PeekCache::Rewind(int64_t tokens) { tokens_ = std::clamp<int64_t>(tokens, 0, tokens_); }

}  // namespace fourierkv
