// A cache with one growing segment, against float64 attention over what it should hold.

#include "compute/cache/sequence_kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "compute/codec/reference_codec.h"
#include "compute/codec/sequence_reference.h"
#include "compute/sequence/sequence_codec.h"
#include "tests/compute/sequence/sequence_test_util.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

constexpr KvGeometry kGeometry{.layers = 2, .kv_heads = 2, .head_dim = 16};
constexpr int kQueryHeads = 6;
constexpr SequenceScope kScope{.sink_tokens = 4, .recent_tokens = 29, .frequencies = 11};

class SequenceCache : public ::testing::TestWithParam<bool> {  // whether to rescale
 protected:
  SequenceCache() : seed_(FreshSeed()), random_(seed_) {
    SequenceScope scope = kScope;
    scope.peak_rescale = GetParam();
    layout_ = std::make_shared<const SequenceLayout>(
        RandomSequenceProfile(random_, kGeometry, scope, 32));
    for (int i = 0; i < 2 * kGeometry.layers; ++i) {
      dense_.push_back(
          RandomSequence(random_, KvDtype::kBf16, kGeometry.kv_heads, kTokens, kGeometry.head_dim));
    }
  }

  // Token by token, as the model gives them: [n][kv_heads][head_dim].
  std::vector<float> Rows(int layer, Part part, int64_t first, int n) const {
    std::vector<float> rows;
    for (int64_t t = first; t < first + n; ++t) {
      for (int h = 0; h < kGeometry.kv_heads; ++h) {
        for (int d = 0; d < kGeometry.head_dim; ++d) {
          rows.push_back(Bf16ToFloat(dense_[layer * 2 + static_cast<int>(part)]
                                           [(h * kTokens + t) * kGeometry.head_dim + d]));
        }
      }
    }
    return rows;
  }

  absl::Status AppendAll(KvCache& cache, int n) const {
    const int64_t first = cache.length();
    for (int l = 0; l < kGeometry.layers; ++l) {
      absl::Status s = cache.Append(l, n, Rows(l, Part::kK, first, n).data(),
                                    Rows(l, Part::kV, first, n).data());
      if (!s.ok()) return s;
    }
    return cache.Advance(n);
  }

  std::unique_ptr<DenseKvCache> Dense(int64_t tokens) {
    auto dense = DenseKvCache::Create(kGeometry, backend_.get(), kTokens);
    EXPECT_TRUE(AppendAll(**dense, static_cast<int>(tokens)).ok());
    return *std::move(dense);
  }

  std::unique_ptr<SequenceKvCache> FromDense(int64_t tokens, int64_t max_new) {
    auto cache =
        SequenceKvCache::FromDense(layout_, backend_.get(), pool_, *Dense(tokens), max_new);
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }

  // The first `tokens` tokens of K or V of `layer`, as a part of the service has them.
  std::vector<uint16_t> PartOf(int layer, Part part, int64_t tokens) const {
    std::vector<uint16_t> out;
    for (int h = 0; h < kGeometry.kv_heads; ++h) {
      const auto from =
          dense_[layer * 2 + static_cast<int>(part)].begin() + h * kTokens * kGeometry.head_dim;
      out.insert(out.end(), from, from + tokens * kGeometry.head_dim);
    }
    return out;
  }

  // What a cache of `encoded` tokens and then n exact ones should hold: [kv_heads][..][head_dim].
  std::vector<double> Expected(int layer, Part part, int64_t encoded, int64_t capacity, int n) {
    const SequencePart& of = layout_->part(layer, part);
    std::vector<std::byte> payload(of.PayloadBytes(encoded));
    reference::EncodeSequence(of, encoded, capacity, KvDtype::kBf16, PartOf(layer, part, encoded),
                              payload);
    const std::vector<double> decoded = reference::DecodeSequence(of, KvDtype::kBf16, payload);
    const std::vector<uint16_t> all = PartOf(layer, part, encoded + n);
    const int64_t dim = kGeometry.head_dim;
    std::vector<double> out;
    for (int64_t h = 0; h < kGeometry.kv_heads; ++h) {
      out.insert(out.end(), decoded.begin() + h * encoded * dim,
                 decoded.begin() + (h + 1) * encoded * dim);
      for (int64_t i = encoded * dim; i < (encoded + n) * dim; ++i) {
        out.push_back(Bf16ToFloat(all[h * (encoded + n) * dim + i]));
      }
    }
    return out;
  }

  // Appends n tokens and compares every layer's attention; does not advance.
  void ExpectAttention(SequenceKvCache& cache, int64_t encoded, int n) {
    const int64_t total = encoded + n, dim = kGeometry.head_dim;
    const int group = kQueryHeads / kGeometry.kv_heads;
    std::normal_distribution<float> normal;
    std::vector<float> q(n * kQueryHeads * dim), out(q.size());
    for (float& value : q) value = normal(random_);
    for (int l = 0; l < kGeometry.layers; ++l) {
      ASSERT_TRUE(cache
                      .Append(l, n, Rows(l, Part::kK, encoded, n).data(),
                              Rows(l, Part::kV, encoded, n).data())
                      .ok());
      ASSERT_TRUE(cache.Attend(l, n, kQueryHeads, q.data(), out.data()).ok());
      const auto k = Expected(l, Part::kK, encoded, cache.capacity(), n);
      const auto v = Expected(l, Part::kV, encoded, cache.capacity(), n);
      for (int i = 0; i < n; ++i) {
        for (int h = 0; h < kQueryHeads; ++h) {
          const int64_t at = (int64_t{i} * kQueryHeads + h) * dim;
          const int64_t first = h / group * total * dim, seen = encoded + i + 1;
          std::vector<double> expected(dim);
          reference::Attend(std::vector<double>(q.begin() + at, q.begin() + at + dim),
                            std::span(k).subspan(first, seen * dim),
                            std::span(v).subspan(first, seen * dim), 1, seen, static_cast<int>(dim),
                            1 / std::sqrt(static_cast<double>(dim)), expected, {});
          const std::vector<float> got(out.begin() + at, out.begin() + at + dim);
          ASSERT_LT(RelativeDistance(got, expected), 5e-5)
              << "layer " << l << ", query " << i << ", head " << h;
        }
      }
    }
  }

  static constexpr int64_t kTokens = 420;
  const uint64_t seed_;
  std::mt19937_64 random_;
  std::unique_ptr<ComputeBackend> backend_ = CreateCpuBackend(2);
  std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>(2);
  std::shared_ptr<const SequenceLayout> layout_;
  std::vector<std::vector<uint16_t>> dense_;  // layer * 2 + part
};

TEST_P(SequenceCache, AttendsToWhatTheReferenceDecodes) {
  SCOPED_TRACE(seed_);
  const int64_t tokens = std::uniform_int_distribution<int64_t>(80, 350)(random_);
  auto cache = FromDense(tokens, 40);
  EXPECT_EQ(cache->length(), tokens);
  EXPECT_EQ(cache->middle_tokens(), tokens - kScope.exact_tokens());
  ExpectAttention(*cache, tokens, 1);
  ExpectAttention(*cache, tokens, 9);  // instead: the chunk before was abandoned
}

TEST_P(SequenceCache, IsExactWhileItsMiddleIsShort) {
  SCOPED_TRACE(seed_);
  const int64_t longest = kScope.exact_tokens() + kScope.states();
  auto cache = FromDense(longest, 5);
  EXPECT_EQ(cache->middle_tokens(), 0);
  ExpectAttention(*cache, longest, 2);
  ASSERT_TRUE(AppendAll(*cache, 1).ok());
  EXPECT_EQ(cache->middle_tokens(), kScope.states() + 1);
  ExpectAttention(*cache, longest + 1, 2);
}

TEST_P(SequenceCache, KeepsAPromptExactUntilItIsComplete) {
  SCOPED_TRACE(seed_);
  auto made = SequenceKvCache::Create(layout_, backend_.get(), pool_,
                                      {.capacity = 260, .prompt_tokens = 240});
  ASSERT_TRUE(made.ok()) << made.status();
  SequenceKvCache& cache = **made;
  ASSERT_TRUE(AppendAll(cache, 150).ok());
  ASSERT_TRUE(AppendAll(cache, 89).ok());
  EXPECT_EQ(cache.middle_tokens(), 0);
  EXPECT_EQ(cache.bytes(), kGeometry.DenseBytes(239));
  ASSERT_TRUE(AppendAll(cache, 1).ok());
  EXPECT_EQ(cache.middle_tokens(), 240 - kScope.exact_tokens());
  ExpectAttention(cache, 240, 3);
}

TEST_P(SequenceCache, CountsWhatItHolds) {
  auto cache = FromDense(300, 10);
  int64_t expected = kGeometry.DenseBytes(kScope.exact_tokens());
  for (int l = 0; l < kGeometry.layers; ++l) {
    for (Part part : kParts) {
      expected += SequenceMiddle::BytesFor(layout_->part(l, part), cache->middle_tokens());
    }
  }
  EXPECT_EQ(cache->bytes(), expected);
  EXPECT_EQ(cache->payload_bytes(), layout_->PayloadBytes(300));
}

TEST_P(SequenceCache, TakesItsLastTokenBack) {
  SCOPED_TRACE(seed_);
  auto cache = FromDense(200, 20);
  const CacheStats before = cache->stats();
  EXPECT_EQ(before.exact_tokens, kScope.exact_tokens());
  EXPECT_EQ(before.exact_bytes + before.compact_bytes, cache->bytes());
  EXPECT_EQ(before.dense_bytes, kGeometry.DenseBytes(200));
  ASSERT_TRUE(cache->ForgetLast().ok());
  EXPECT_EQ(cache->length(), 199);
  ASSERT_TRUE(AppendAll(*cache, 1).ok());
  EXPECT_EQ(cache->stats().exact_tokens, before.exact_tokens);
  ExpectAttention(*cache, 200, 3);
  auto empty = SequenceKvCache::Create(layout_, backend_.get(), pool_, {.capacity = 1});
  EXPECT_EQ((*empty)->ForgetLast().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(SequenceCache, EndsWithItsBasis) {
  auto cache = FromDense(200, 3);
  ASSERT_TRUE(AppendAll(*cache, 2).ok());
  const absl::Status status = AppendAll(*cache, 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("raise max_new"));
  EXPECT_TRUE(AppendAll(*cache, 1).ok());
}

TEST_P(SequenceCache, CanBeFilledWithPayloadsWhileInUse) {
  SCOPED_TRACE(seed_);
  const int64_t tokens = 230, capacity = 250;
  auto made = SequenceKvCache::Create(layout_, backend_.get(), pool_, {.capacity = capacity});
  ASSERT_TRUE(made.ok());
  SequenceKvCache& cache = **made;
  ASSERT_TRUE(cache.BeginFill(tokens, absl::Now() + absl::Seconds(30)).ok());
  EXPECT_EQ(cache.length(), tokens);
  std::thread filler([&] {
    ThreadPool own(1);
    for (int l = 0; l < kGeometry.layers; ++l) {
      std::vector<std::byte> payloads[2];
      for (Part part : kParts) {
        std::vector<std::byte>& payload = payloads[static_cast<int>(part)];
        const SequencePart& of = layout_->part(l, part);
        payload.resize(of.PayloadBytes(tokens));
        const auto error =
            EncodeSequence(of, tokens, capacity, MakeSequenceBasis(of.scope, tokens, capacity),
                           KvDtype::kBf16, PartOf(l, part, tokens).data(), payload, own);
        ASSERT_TRUE(error.ok()) << error.status();
      }
      const absl::Status status = cache.InstallPayloads(l, payloads[0], payloads[1]);
      ASSERT_TRUE(status.ok()) << status;
    }
  });
  ExpectAttention(cache, tokens, 4);
  filler.join();
  ASSERT_TRUE(AppendAll(cache, 4).ok());
  EXPECT_EQ(cache.middle_tokens(), tokens + 4 - kScope.exact_tokens());
}

INSTANTIATE_TEST_SUITE_P(Rescale, SequenceCache, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Peak" : "None"; });

// Rounding and rescaling belong to the first encoding, so growth equals it only without them.
class GrowingSequenceCache : public SequenceCache {};

TEST_P(GrowingSequenceCache, AddsEachTokenThatLeavesTheRecentOnes) {
  SCOPED_TRACE(seed_);
  auto cache = FromDense(150, 200);
  int64_t tokens = 150;
  for (int n : {1, 1, 1, 2, 7, 30, 1, 60}) {
    ASSERT_TRUE(AppendAll(*cache, n).ok());
    tokens += n;
    EXPECT_EQ(cache->middle_tokens(), tokens - kScope.exact_tokens());
  }
  ExpectAttention(*cache, tokens, 1);
  ExpectAttention(*cache, tokens, 5);
}

INSTANTIATE_TEST_SUITE_P(Rescale, GrowingSequenceCache, ::testing::Values(false),
                         [](const auto&) { return "None"; });

class SequenceCacheErrors : public SequenceCache {};

TEST_P(SequenceCacheErrors, NameWhatIsWrong) {
  for (int64_t capacity : {int64_t{0}, int64_t{-1}, kMaxSequenceTokens + 1}) {
    EXPECT_EQ(SequenceKvCache::Create(layout_, backend_.get(), pool_, {.capacity = capacity})
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument);
  }
  auto empty = DenseKvCache::Create(kGeometry, backend_.get(), 10);
  EXPECT_EQ(SequenceKvCache::FromDense(layout_, backend_.get(), pool_, **empty, 5).status().code(),
            absl::StatusCode::kInvalidArgument);
  auto other = DenseKvCache::Create({1, 1, 16}, backend_.get(), 10);
  EXPECT_THAT(std::string(SequenceKvCache::FromDense(layout_, backend_.get(), pool_, **other, 5)
                              .status()
                              .message()),
              HasSubstr("is for 2 layers"));
  EXPECT_EQ(
      SequenceKvCache::FromDense(layout_, backend_.get(), pool_, *Dense(20), -1).status().code(),
      absl::StatusCode::kInvalidArgument);

  auto cache = FromDense(100, 10);
  float value[kGeometry.kv_heads * kGeometry.head_dim] = {};
  EXPECT_EQ(cache->Append(2, 1, value, value).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->Append(0, 0, value, value).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->Attend(0, 1, kQueryHeads, value, value).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cache->Advance(1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cache->BeginFill(50, absl::InfiniteFuture()).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cache->InstallPayloads(0, {}, {}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(SequenceCacheErrors, RefuseWhatCannotBeEncoded) {
  auto cache = FromDense(100, 60);
  std::vector<float> nan(kGeometry.kv_heads * kGeometry.head_dim, NAN);
  for (int l = 0; l < kGeometry.layers; ++l) {
    ASSERT_TRUE(cache->Append(l, 1, nan.data(), nan.data()).ok());
  }
  ASSERT_TRUE(cache->Advance(1).ok()) << "it is among the recent tokens";
  ASSERT_TRUE(AppendAll(*cache, kScope.recent_tokens - 1).ok());
  const absl::Status status = AppendAll(*cache, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("K of layer 0, head 0"));
}

TEST_P(SequenceCacheErrors, FillsFailAsASegmentCacheDoes) {
  auto made = SequenceKvCache::Create(layout_, backend_.get(), pool_, {.capacity = 100});
  ASSERT_TRUE(made.ok());
  SequenceKvCache& cache = **made;
  EXPECT_EQ(cache.BeginFill(0, absl::InfiniteFuture()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache.BeginFill(101, absl::InfiniteFuture()).code(),
            absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(cache.BeginFill(90, absl::Now() + absl::Milliseconds(20)).ok());
  EXPECT_EQ(cache.InstallPayloads(7, {}, {}).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status status = cache.InstallPayloads(0, {}, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("K of layer 0: the payload has 0 bytes"));
  EXPECT_EQ(AppendAll(cache, 1).code(), absl::StatusCode::kDeadlineExceeded);
  cache.FailFill(absl::UnavailableError("the service went away"));
  EXPECT_EQ(AppendAll(cache, 1).code(), absl::StatusCode::kUnavailable);
}

INSTANTIATE_TEST_SUITE_P(Rescale, SequenceCacheErrors, ::testing::Values(false),
                         [](const auto&) { return "None"; });

}  // namespace
}  // namespace fourierkv
