#include "compute/cache/exact_layer.h"

#include <algorithm>
#include <cstring>

#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

template <typename Convert>
void ConvertRow(const float* from, int n, uint16_t* to, Convert convert) {
  for (int d = 0; d < n; ++d) to[d] = convert(from[d]);
}

}  // namespace

ExactLayer::ExactLayer(int kv_heads, int head_dim, KvDtype dtype)
    : kv_heads_(kv_heads), head_dim_(head_dim), dtype_(dtype) {}

void ExactLayer::Grow(int64_t capacity) {
  const size_t elements = static_cast<size_t>(capacity) * kv_heads_ * head_dim_;
  for (auto* part : {&k_, &v_}) {
    auto grown = std::make_unique_for_overwrite<uint16_t[]>(elements);
    for (int head = 0; head < kv_heads_ && tokens_ > 0; ++head) {
      std::memcpy(grown.get() + head * capacity * head_dim_, at(part->get(), head, 0),
                  static_cast<size_t>(tokens_) * head_dim_ * sizeof(uint16_t));
    }
    *part = std::move(grown);
  }
  capacity_ = capacity;
}

void ExactLayer::Reserve(int64_t tokens) {
  if (tokens > capacity_) Grow(tokens);
}

void ExactLayer::Resize(int64_t tokens) {
  // Half as much again, so that a growing sequence copies each token a constant number of times.
  if (tokens > capacity_) Grow(std::max<int64_t>({tokens, capacity_ + capacity_ / 2, 64}));
  tokens_ = tokens;
}

void ExactLayer::NoteWrite(int64_t first, int64_t n) {
  if (first >= written_) {
    written_ = first + n;
    return;
  }
  version_ = NextUniqueId();
  written_ = tokens_;
}

void ExactLayer::WriteTokens(int64_t first, int64_t n, const float* k, const float* v) {
  NoteWrite(first, n);
  const int64_t token_size = static_cast<int64_t>(kv_heads_) * head_dim_;
  for (const auto& [from, to] : {std::pair{k, k_.get()}, std::pair{v, v_.get()}}) {
    for (int64_t t = 0; t < n; ++t) {
      for (int head = 0; head < kv_heads_; ++head) {
        const float* row = from + t * token_size + head * head_dim_;
        uint16_t* out = at(to, head, first + t);
        if (dtype_ == KvDtype::kBf16) {
          ConvertRow(row, head_dim_, out, FloatToBf16);
        } else {
          ConvertRow(row, head_dim_, out, FloatToFp16);
        }
      }
    }
  }
}

void ExactLayer::WriteHeads(int64_t first, int64_t n, const uint16_t* k, const uint16_t* v) {
  NoteWrite(first, n);
  for (const auto& [from, to] : {std::pair{k, k_.get()}, std::pair{v, v_.get()}}) {
    for (int head = 0; head < kv_heads_; ++head) {
      std::memcpy(at(to, head, first), from + head * n * head_dim_,
                  static_cast<size_t>(n) * head_dim_ * sizeof(uint16_t));
    }
  }
}

void ExactLayer::Erase(int64_t first, int64_t n) {
  const int64_t behind = tokens_ - first - n;
  for (uint16_t* data : {k_.get(), v_.get()}) {
    for (int head = 0; head < kv_heads_; ++head) {
      std::memmove(at(data, head, first), at(data, head, first + n),
                   static_cast<size_t>(behind) * head_dim_ * sizeof(uint16_t));
    }
  }
  tokens_ -= n;
  version_ = NextUniqueId();
  written_ = tokens_;
}

ExactBlock ExactLayer::block() const {
  return {k_.get(), v_.get(), tokens_, capacity_ * head_dim_, version_};
}

}  // namespace fourierkv
