// Attention against float64 over the same decoded cache.

#include <cmath>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/compute/backend/backend_test_util.h"
#include "tests/compute/backend/backend_under_test.h"

namespace fourierkv {
namespace {

struct Result {
  std::vector<float> out;
  std::vector<float> lse;
};

class Attention : public BackendTest {
 protected:
  static Result Run(ComputeBackend& backend, const LayerKv& kv, const std::vector<float>& q,
                    int query_tokens, int query_heads, float scale) {
    Result result;
    result.out.assign(q.size(), NAN);
    result.lse.assign(static_cast<size_t>(query_tokens) * query_heads, NAN);
    AttentionArgs args;
    args.kv = kv;
    args.query_heads = query_heads;
    args.query_tokens = query_tokens;
    args.scale = scale;
    args.q = q.data();
    args.out = result.out.data();
    args.lse = result.lse.data();
    const absl::Status status = backend.Attend(args);
    EXPECT_TRUE(status.ok()) << status;
    return result;
  }

  // Relative error of outputs, and of the log-sum-exp beside its own rounding.
  void ExpectClose(const Result& got, const TestCache::Expected& want, double tolerance) const {
    EXPECT_LE(RelativeError(got.out, want.out), tolerance);
    for (size_t i = 0; i < got.lse.size(); ++i) {
      const double allowed = tolerances_.lse * tolerance * std::max(1.0, std::abs(want.lse[i]));
      ASSERT_NEAR(got.lse[i], want.lse[i], allowed);
    }
  }

  void Check(const CodecCase& test, int compact, const std::vector<int>& exact, int group,
             int query_tokens = 1) {
    SCOPED_TRACE(testing::Message()
                 << test.Name() << ", " << compact << " compact, " << exact.size()
                 << " exact blocks, G " << group << ", " << query_tokens << " query tokens");
    const TestCache cache(test, compact, exact, random_);
    const int query_heads = group * test.kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(test.head_dim));
    const auto q =
        RandomQueries(static_cast<int64_t>(query_tokens) * query_heads * test.head_dim, 1, random_);
    const auto want = cache.Attend(q, query_tokens, query_heads, scale);
    ForEachTarget([&] {
      ExpectClose(Run(*backend_, cache.View(), q, query_tokens, query_heads, scale), want,
                  tolerances_.For(test.dtype, query_tokens));
    });
  }

  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  const AttentionTolerances tolerances_ = TolerancesUnderTest();
};

constexpr int kGroups[] = {4, 1, 2, 3, 8, 16, 5};

TEST_F(Attention, OneQueryOnCompactSegments) {
  int i = 0;
  for (const CodecCase& test : CodecCases()) Check(test, 3, {}, kGroups[i++ % 7]);
}

TEST_F(Attention, OneQueryOnExactBlocks) {
  int i = 3;
  for (const CodecCase& test : CodecCases()) Check(test, 0, {129, 1, 64}, kGroups[i++ % 7]);
}

TEST_F(Attention, OneQueryOnBoth) {
  int i = 5;
  for (const CodecCase& test : CodecCases()) Check(test, 2, {64, 0, 37, 1}, kGroups[i++ % 7]);
}

TEST_F(Attention, OneTokenIsItsOwnAnswer) {
  for (const int group : {1, 4}) Check({}, 0, {1}, group);
}

TEST_F(Attention, GroupOf64) { Check({.head_dim = 64, .kv_heads = 1}, 1, {70}, 64); }

TEST_F(Attention, LongCachesAreSplitAndMerged) {
  const CodecCase test = {.head_dim = 64, .kv_heads = 2, .segment_tokens = 1024};
  Check(test, 6, {2500, 300, 1}, 4);
}

TEST_F(Attention, ChunkOnEveryForm) {
  int i = 0;
  for (const CodecCase& test : CodecCases()) {
    Check(test, i % 3, {33, 40 + i}, kGroups[i % 7], 7 + i);
    ++i;
  }
}

TEST_F(Attention, ChunkThatIsTheWholeCache) {
  Check({.head_dim = 64, .kv_heads = 2}, 0, {300}, 2, 300);
}

TEST_F(Attention, ChunkLargerThanATask) {
  Check({.head_dim = 32, .kv_heads = 1}, 1, {10, 600}, 4, 290);
}

TEST_F(Attention, ChunkEqualsOneByOne) {
  const CodecCase test = {.head_dim = 80, .kv_heads = 2};
  constexpr int kTokens = 9;
  constexpr int kHeads = 6;
  const TestCache cache(test, 2, {20, 31}, random_);
  const auto q = RandomQueries(kTokens * kHeads * 80, 1, random_);
  const Result chunk = Run(*backend_, cache.View(), q, kTokens, kHeads, 0.1f);
  for (int i = 0; i < kTokens; ++i) {
    LayerKv kv = cache.View();
    std::vector<ExactBlock> exact(kv.exact.begin(), kv.exact.end());
    exact.back().tokens -= kTokens - 1 - i;
    kv.exact = exact;
    const std::vector<float> q1(q.begin() + i * kHeads * 80, q.begin() + (i + 1) * kHeads * 80);
    const Result one = Run(*backend_, kv, q1, 1, kHeads, 0.1f);
    const auto row = chunk.out.begin() + i * q1.size();
    const double tolerance = tolerances_.For(test.dtype, kTokens);
    EXPECT_LE(RelativeError(one.out, std::vector<double>(row, row + q1.size())), tolerance);
    for (int h = 0; h < kHeads; ++h) {
      ASSERT_NEAR(one.lse[h], chunk.lse[i * kHeads + h], 10 * tolerance);
    }
  }
}

TEST_F(Attention, LargeLogitsNeitherOverflowNorLoseTheirMaximum) {
  const CodecCase test = {.head_dim = 128, .kv_heads = 2};
  const TestCache cache(test, 2, {100, 7}, random_);
  for (const int query_tokens : {1, 5}) {
    const auto q = RandomQueries(int64_t{query_tokens} * 8 * 128, 100, random_);
    const auto want = cache.Attend(q, query_tokens, 8, 1.0);
    ForEachTarget([&] {
      const Result got = Run(*backend_, cache.View(), q, query_tokens, 8, 1.0f);
      for (float x : got.out) ASSERT_TRUE(std::isfinite(x));
      for (float x : got.lse) ASSERT_TRUE(std::isfinite(x));
      if (!tolerances_.large_logits) return;
      // Logits of 1e4 and more carry rounding errors of about 1e-3 in float.
      EXPECT_LE(RelativeError(got.out, want.out), 2e-2);
      for (size_t i = 0; i < got.lse.size(); ++i) {
        ASSERT_NEAR(got.lse[i], want.lse[i], 1e-2);
      }
    });
  }
}

TEST_F(Attention, AnyNumberOfThreadsGivesTheSameBits) {
  const CodecCase test = {.head_dim = 64, .kv_heads = 3};
  const TestCache cache(test, 20, {2100, 5}, random_);
  for (const int query_tokens : {1, 5}) {
    const auto q = RandomQueries(int64_t{query_tokens} * 6 * 64, 1, random_);
    const Result one = Run(*CreateBackendUnderTest(1), cache.View(), q, query_tokens, 6, 0.2f);
    for (const int threads : {2, 3}) {
      const auto backend = CreateBackendUnderTest(threads);
      for (int repeat = 0; repeat < 3; ++repeat) {
        const Result got = Run(*backend, cache.View(), q, query_tokens, 6, 0.2f);
        EXPECT_EQ(got.out, one.out) << threads << " threads";
        EXPECT_EQ(got.lse, one.lse) << threads << " threads";
      }
    }
  }
}

TEST_F(Attention, CallsFromManyThreadsDoNotMix) {
  const CodecCase test = {.head_dim = 64, .kv_heads = 2};
  const TestCache cache(test, 3, {64}, random_);
  const auto q = RandomQueries(4 * 64, 1, random_);
  const Result want = Run(*backend_, cache.View(), q, 1, 4, 0.125f);
  std::vector<Result> got(4);
  std::vector<std::thread> callers;
  for (Result& result : got) {
    callers.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = Run(*backend_, cache.View(), q, 1, 4, 0.125f);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Result& result : got) EXPECT_EQ(result.out, want.out);
}

TEST_F(Attention, LseIsOptional) {
  const TestCache cache({.head_dim = 64, .kv_heads = 1}, 1, {5}, random_);
  for (const int query_tokens : {1, 2}) {
    const auto q = RandomQueries(query_tokens * 64, 1, random_);
    std::vector<float> out(q.size());
    AttentionArgs args;
    args.kv = cache.View();
    args.query_heads = 1;
    args.query_tokens = query_tokens;
    args.scale = 0.125f;
    args.q = q.data();
    args.out = out.data();
    EXPECT_TRUE(backend_->Attend(args).ok());
  }
}

}  // namespace
}  // namespace fourierkv
