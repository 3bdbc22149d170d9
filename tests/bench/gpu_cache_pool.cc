#include "tests/bench/gpu_cache_pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "tests/bench/gpu_attention_cases.h"

namespace fourierkv {
namespace {

constexpr int64_t kHeadDim = kBenchHeadDim;

// [kv_heads][tokens][head_dim]: channels that drift slowly, with noise, as caches have.
std::vector<uint16_t> RandomKv(int tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(static_cast<size_t>(kBenchKvHeads) * tokens * kHeadDim);
  std::vector<float> drift(kHeadDim);
  uint64_t state = random() | 1;
  size_t next = 0;
  for (int h = 0; h < kBenchKvHeads; ++h) {
    for (float& x : drift) x = 1.5f * normal(random);
    for (int t = 0; t < tokens; ++t) {
      for (int64_t d = 0; d < kHeadDim; ++d) {
        if ((t + 3 * d) % 64 == 0) drift[d] = 0.8f * drift[d] + normal(random);
        state = state * 6364136223846793005u + 1442695040888963407u;
        const float noise = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
        values[next++] = FloatToBf16(drift[d] + noise);
      }
    }
  }
  return values;
}

int CheckedHead(int index) { return index == 0 ? 0 : kBenchKvHeads - 1; }

// The checked heads of [kv_heads][tokens][head_dim].
void KeepCheckedHeads(std::span<const double> all, int tokens, double* kept) {
  const size_t head = static_cast<size_t>(tokens) * kHeadDim;
  for (int i = 0; i < kCheckedHeads; ++i) {
    std::copy_n(all.data() + CheckedHead(i) * head, head, kept + i * head);
  }
}

CachePool EmptyPool(int size, int tokens, size_t k_bytes, size_t v_bytes) {
  CachePool pool;
  pool.size = size;
  pool.tokens = tokens;
  pool.k_bytes = k_bytes;
  pool.v_bytes = v_bytes;
  pool.k.resize(size * k_bytes);
  pool.v.resize(size * v_bytes);
  pool.k_exact.resize(static_cast<size_t>(size) * kCheckedHeads * tokens * kHeadDim);
  pool.v_exact.resize(pool.k_exact.size());
  return pool;
}

// Runs make(part is V, item, its bytes, its meaning) for every part of every item.
template <typename Make>
void FillPool(ThreadPool* threads, CachePool* pool, const Make& make) {
  const size_t exact = pool->k_exact.size() / pool->size;
  threads->ParallelFor(int64_t{2} * pool->size, [&](int64_t i, int) {
    const int64_t item = i / 2;
    if (i % 2 == 0) {
      make(Part::kK, item, std::span(pool->k).subspan(item * pool->k_bytes, pool->k_bytes),
           pool->k_exact.data() + item * exact);
    } else {
      make(Part::kV, item, std::span(pool->v).subspan(item * pool->v_bytes, pool->v_bytes),
           pool->v_exact.data() + item * exact);
    }
  });
}

uint64_t Seed(Part part, int64_t item) { return 2 * item + static_cast<uint64_t>(part); }

// Online softmax over blocks, each of which is attended to exactly.
class SoftmaxSum {
 public:
  SoftmaxSum(std::span<const double> q, double scale)
      : q_(q),
        group_(static_cast<int>(q.size() / kHeadDim)),
        scale_(scale),
        out_(q.size(), 0.0),
        lse_(group_, -std::numeric_limits<double>::infinity()) {}

  void Add(std::span<const double> k, std::span<const double> v, int tokens) {
    std::vector<double> out(out_.size());
    std::vector<double> lse(group_);
    reference::Attend(q_, k, v, group_, tokens, kHeadDim, scale_, out, lse);
    for (int g = 0; g < group_; ++g) {
      const double top = std::max(lse_[g], lse[g]);
      const double sum = top + std::log(std::exp(lse_[g] - top) + std::exp(lse[g] - top));
      const double old_weight = std::exp(lse_[g] - sum);
      const double new_weight = std::exp(lse[g] - sum);
      for (int64_t d = g * kHeadDim; d < (g + 1) * kHeadDim; ++d) {
        out_[d] = old_weight * out_[d] + new_weight * out[d];
      }
      lse_[g] = sum;
    }
  }

  std::vector<double> TakeOut() { return std::move(out_); }

 private:
  const std::span<const double> q_;
  const int group_;
  const double scale_;
  std::vector<double> out_;
  std::vector<double> lse_;
};

}  // namespace

std::span<const double> CachePool::Exact(const std::vector<double>& part, int item,
                                         int head) const {
  const size_t values = static_cast<size_t>(tokens) * kHeadDim;
  return std::span(part).subspan((static_cast<size_t>(item) * kCheckedHeads + head) * values,
                                 values);
}

CachePool MakeSegmentPool(const ProfileLayout& layout, int size, ThreadPool* threads) {
  CachePool pool = EmptyPool(size, kBenchSegmentTokens, layout.part(0, Part::kK).payload_bytes,
                             layout.part(0, Part::kV).payload_bytes);
  FillPool(
      threads, &pool, [&](Part part, int64_t item, std::span<std::byte> payload, double* exact) {
        const PartLayout& part_layout = layout.part(0, part);
        reference::EncodePart(part_layout, KvDtype::kBf16,
                              RandomKv(kBenchSegmentTokens, Seed(part, item)), payload);
        KeepCheckedHeads(reference::DecodePart(part_layout, payload), kBenchSegmentTokens, exact);
      });
  return pool;
}

CachePool MakePagePool(int size, ThreadPool* threads) {
  const size_t bytes = size_t{kBenchKvHeads} * kBenchPageTokens * kHeadDim * kKvDtypeBytes;
  CachePool pool = EmptyPool(size, kBenchPageTokens, bytes, bytes);
  FillPool(threads, &pool, [&](Part part, int64_t item, std::span<std::byte> page, double* exact) {
    const std::vector<uint16_t> values = RandomKv(kBenchPageTokens, Seed(part, item));
    std::memcpy(page.data(), values.data(), page.size());
    std::vector<double> all(values.size());
    std::transform(values.begin(), values.end(), all.begin(), Bf16ToFloat);
    KeepCheckedHeads(all, kBenchPageTokens, exact);
  });
  return pool;
}

std::vector<double> ReferenceAttention(const CachePool* segments, const CachePool* pages,
                                       const CachedSequence& sequence, int head,
                                       std::span<const double> q, double scale) {
  SoftmaxSum sum(q, scale);
  for (const int item : sequence.segments) {
    sum.Add(segments->Exact(segments->k_exact, item, head),
            segments->Exact(segments->v_exact, item, head), segments->tokens);
  }
  for (const int item : sequence.pages) {
    sum.Add(pages->Exact(pages->k_exact, item, head), pages->Exact(pages->v_exact, item, head),
            pages->tokens);
  }
  return sum.TakeOut();
}

}  // namespace fourierkv
