#include "compute/cache/dense_kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>

#include "tests/compute/cache/cache_test_util.h"
#include "tests/compute/cache/reference_backend.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

class DenseKvCacheTest : public testing::Test {
 protected:
  DenseKvCacheTest()
      : random_(seed_), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed_)) {}

  std::unique_ptr<DenseKvCache> Make(int64_t max_tokens = 1000) {
    auto cache = DenseKvCache::Create(kTestGeometry, &backend_, max_tokens);
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 random_;
  testing::ScopedTrace trace_;
  ReferenceBackend backend_;
};

TEST_F(DenseKvCacheTest, CountsTokensAndBytes) {
  auto cache = Make();
  const TokenKv kv = RandomTokens(random_, 30);
  ASSERT_TRUE(AppendAll(*cache, kv, 0, 23).ok());
  ASSERT_TRUE(AppendAll(*cache, kv, 23, 7).ok());
  EXPECT_EQ(cache->length(), 30);
  EXPECT_EQ(cache->bytes(), kTestGeometry.DenseBytes(30));
  EXPECT_EQ(cache->stats().exact_tokens, 30);
  EXPECT_EQ(cache->stats().compact_segments, 0);
}

TEST_F(DenseKvCacheTest, ATokenSeesItselfAndWhatCameBefore) {
  auto cache = Make();
  const int size = kTestGeometry.kv_heads * kTestGeometry.head_dim;
  const int q_size = kTestQueryHeads * kTestGeometry.head_dim;
  // Keys of zero weigh all tokens alike, so that the output is the mean of the values seen.
  const std::vector<float> k(5 * size, 0.0f), q(5 * q_size, 1.0f);
  std::vector<float> v(5 * size), out(5 * q_size);
  for (int i = 0; i < 5 * size; ++i) v[i] = static_cast<float>(i / size);
  ASSERT_TRUE(cache->Append(0, 5, k.data(), v.data()).ok());
  ASSERT_TRUE(cache->Attend(0, 5, kTestQueryHeads, q.data(), out.data()).ok());
  for (int t = 0; t < 5; ++t) EXPECT_FLOAT_EQ(out[t * q_size], t / 2.0f);
  // The last two alone.
  ASSERT_TRUE(cache->Attend(0, 2, kTestQueryHeads, q.data(), out.data()).ok());
  EXPECT_FLOAT_EQ(out[0], 1.5f);
  EXPECT_FLOAT_EQ(out[q_size], 2.0f);
}

TEST_F(DenseKvCacheTest, AnAbandonedChunkLeavesNoTrace) {
  auto cache = Make();
  const TokenKv kv = RandomTokens(random_, 40);
  ASSERT_TRUE(AppendAll(*cache, kv, 0, 10).ok());
  const TokenKv abandoned = RandomTokens(random_, 25);
  ASSERT_TRUE(cache->Append(0, 25, abandoned.k[0].data(), abandoned.v[0].data()).ok());
  ASSERT_TRUE(AppendAll(*cache, kv, 10, 4).ok());

  auto clean = Make();
  ASSERT_TRUE(AppendAll(*clean, kv, 0, 14).ok());
  for (int l = 0; l < kTestGeometry.layers; ++l) {
    const ExactBlock a = cache->exact_block(l), b = clean->exact_block(l);
    ASSERT_EQ(a.tokens, b.tokens);
    for (int64_t i = 0; i < a.tokens * kTestGeometry.head_dim; ++i) ASSERT_EQ(a.k[i], b.k[i]);
  }
}

TEST_F(DenseKvCacheTest, RefusesMoreThanItsCapacity) {
  auto cache = Make(20);
  const TokenKv kv = RandomTokens(random_, 21);
  ASSERT_TRUE(AppendAll(*cache, kv, 0, 20).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(AppendAll(*cache, kv, 20, 1)));
  EXPECT_TRUE(absl::IsResourceExhausted(cache->Reserve(21)));
  EXPECT_EQ(cache->length(), 20);
}

TEST_F(DenseKvCacheTest, RefusesCallsOutOfOrder) {
  auto cache = Make();
  const TokenKv kv = RandomTokens(random_, 4);
  std::vector<float> q(4 * kTestQueryHeads * kTestGeometry.head_dim), out(q.size());
  EXPECT_TRUE(absl::IsInvalidArgument(cache->Append(2, 1, kv.k[0].data(), kv.v[0].data())));
  EXPECT_TRUE(absl::IsInvalidArgument(cache->Append(-1, 1, kv.k[0].data(), kv.v[0].data())));
  EXPECT_TRUE(absl::IsInvalidArgument(cache->Append(0, 0, kv.k[0].data(), kv.v[0].data())));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(cache->Attend(0, 1, kTestQueryHeads, q.data(), out.data())));
  ASSERT_TRUE(cache->Append(0, 4, kv.k[0].data(), kv.v[0].data()).ok());
  EXPECT_TRUE(
      absl::IsFailedPrecondition(cache->Attend(0, 5, kTestQueryHeads, q.data(), out.data())));
  const absl::Status advance = cache->Advance(4);
  EXPECT_TRUE(absl::IsFailedPrecondition(advance));
  EXPECT_THAT(std::string(advance.message()), HasSubstr("layer 1"));
}

TEST_F(DenseKvCacheTest, CreateBoundsItsArguments) {
  EXPECT_FALSE(DenseKvCache::Create(kTestGeometry, &backend_, 0).ok());
  EXPECT_FALSE(DenseKvCache::Create(kTestGeometry, &backend_, kMaxCacheTokens + 1).ok());
  EXPECT_FALSE(DenseKvCache::Create({0, 2, 16}, &backend_, 10).ok());
}

TEST_F(DenseKvCacheTest, AFilledCacheEqualsAComputedOne) {
  const TokenKv kv = RandomTokens(random_, 50);
  auto filled = Make();
  ASSERT_TRUE(filled->BeginFill({.length = 50}, absl::InfiniteFuture()).ok());
  EXPECT_EQ(filled->length(), 50);
  std::thread filler([&] {
    for (int l = 0; l < kTestGeometry.layers; ++l) {
      for (const auto& [first, n] : {std::pair{33, 17}, {0, 33}}) {
        EXPECT_TRUE(filled
                        ->InstallExact(l, first, n, ByHead(kv.k[l], first, n).data(),
                                       ByHead(kv.v[l], first, n).data())
                        .ok());
      }
      EXPECT_TRUE(filled->MarkLayerReady(l).ok());
    }
  });
  auto computed = Make();
  ASSERT_TRUE(AppendAll(*computed, kv, 0, 50).ok());
  const TokenKv next = RandomTokens(random_, 1);
  const std::vector<float> q = RandomFloats(random_, kTestQueryHeads * kTestGeometry.head_dim);
  for (int l = 0; l < kTestGeometry.layers; ++l) {
    std::vector<float> a(q.size()), b(q.size());
    ASSERT_TRUE(filled->Append(l, 1, next.k[l].data(), next.v[l].data()).ok());
    ASSERT_TRUE(computed->Append(l, 1, next.k[l].data(), next.v[l].data()).ok());
    ASSERT_TRUE(filled->Attend(l, 1, kTestQueryHeads, q.data(), a.data()).ok());
    ASSERT_TRUE(computed->Attend(l, 1, kTestQueryHeads, q.data(), b.data()).ok());
    EXPECT_EQ(a, b);
  }
  filler.join();
  EXPECT_TRUE(filled->Advance(1).ok());
  EXPECT_EQ(filled->length(), 51);
}

TEST_F(DenseKvCacheTest, AFillMustBeCompleteAndInPlace) {
  const std::vector<uint16_t> kv = RandomKv(random_, 1000);
  auto cache = Make();
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->InstallExact(0, 0, 1, kv.data(), kv.data())));
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->MarkLayerReady(0)));
  const absl::Time never = absl::InfiniteFuture();
  EXPECT_TRUE(absl::IsInvalidArgument(cache->BeginFill({.length = 0}, never)));
  EXPECT_TRUE(absl::IsInvalidArgument(cache->BeginFill({10, 1}, never)));
  EXPECT_TRUE(absl::IsInvalidArgument(cache->BeginFill({10, -1}, never)));
  EXPECT_TRUE(absl::IsResourceExhausted(cache->BeginFill({.length = 1001}, never)));
  ASSERT_TRUE(cache->BeginFill({.length = 10}, never).ok());
  for (const auto& [first, n] : {std::pair<int64_t, int64_t>{-1, 2},
                                 {0, 0},
                                 {0, 11},
                                 {9, 2},
                                 {INT64_MAX, 1},
                                 {1, INT64_MAX}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(cache->InstallExact(0, first, n, kv.data(), kv.data())));
  }
  ASSERT_TRUE(cache->InstallExact(0, 0, 4, kv.data(), kv.data()).ok());
  ASSERT_TRUE(cache->InstallExact(0, 5, 5, kv.data(), kv.data()).ok());
  const absl::Status incomplete = cache->MarkLayerReady(0);
  EXPECT_TRUE(absl::IsFailedPrecondition(incomplete));
  EXPECT_THAT(std::string(incomplete.message()), HasSubstr("position 4"));
  ASSERT_TRUE(cache->InstallExact(0, 4, 1, kv.data(), kv.data()).ok());
  EXPECT_TRUE(cache->MarkLayerReady(0).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->MarkLayerReady(0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->BeginFill({.length = 10}, never)));
}

TEST_F(DenseKvCacheTest, AFailedOrLateFillReachesTheRunner) {
  const TokenKv kv = RandomTokens(random_, 1);
  auto failed = Make();
  ASSERT_TRUE(failed->BeginFill({.length = 10}, absl::InfiniteFuture()).ok());
  failed->FailFill(absl::UnavailableError("gone"));
  EXPECT_EQ(failed->Append(0, 1, kv.k[0].data(), kv.v[0].data()), absl::UnavailableError("gone"));

  auto late = Make();
  ASSERT_TRUE(late->BeginFill({.length = 10}, absl::InfinitePast()).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(late->Append(0, 1, kv.k[0].data(), kv.v[0].data())));
}

}  // namespace
}  // namespace fourierkv
