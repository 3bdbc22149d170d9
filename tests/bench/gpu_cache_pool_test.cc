#include "tests/bench/gpu_cache_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "tests/bench/gpu_attention_cases.h"

namespace fourierkv {
namespace {

constexpr int kPool = 3;
constexpr int kGroup = 4;
constexpr int64_t kHead = int64_t{kBenchSegmentTokens} * kBenchHeadDim;

TEST(CachePool, KnowsWhatItsPayloadsMean) {
  const ProfileLayout layout(*AttentionProfile("int4-15x"));
  ThreadPool threads(2);
  const CachePool pool = MakeSegmentPool(layout, kPool, &threads);
  const PartLayout& part = layout.part(0, Part::kV);
  ASSERT_EQ(pool.v_bytes, part.payload_bytes);
  const std::vector<double> decoded =
      reference::DecodePart(part, std::span(pool.v).subspan(2 * pool.v_bytes, pool.v_bytes));
  for (int64_t i = 0; i < kHead; i += 97) {
    EXPECT_EQ(pool.Exact(pool.v_exact, 2, 0)[i], decoded[i]);
    EXPECT_EQ(pool.Exact(pool.v_exact, 2, 1)[i], decoded[(kBenchKvHeads - 1) * kHead + i]);
  }
  // No two parts are alike, or caches would be smaller than they seem.
  EXPECT_NE(std::memcmp(pool.k.data(), pool.k.data() + pool.k_bytes, pool.k_bytes), 0);
}

TEST(CachePool, PagesHoldTheirValuesAsTheyAre) {
  ThreadPool threads(2);
  const CachePool pool = MakePagePool(kPool, &threads);
  const int64_t head = int64_t{kBenchPageTokens} * kBenchHeadDim;
  ASSERT_EQ(pool.k_bytes, kBenchKvHeads * head * 2);
  for (int64_t i = 0; i < head; i += 31) {
    uint16_t value = 0;
    std::memcpy(&value, pool.k.data() + pool.k_bytes + ((kBenchKvHeads - 1) * head + i) * 2, 2);
    EXPECT_EQ(pool.Exact(pool.k_exact, 1, 1)[i], Bf16ToFloat(value));
  }
}

TEST(ReferenceAttention, OverPiecesIsAttentionOverTheWhole) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> q(kGroup * kBenchHeadDim);
  for (double& x : q) x = 2 * normal(random);
  ThreadPool threads(2);
  const CachePool segments =
      MakeSegmentPool(ProfileLayout(*AttentionProfile("int8")), kPool, &threads);
  const CachePool pages = MakePagePool(kPool, &threads);
  const CachedSequence sequence = {{2, 0, 0}, {1, 2}};

  std::vector<double> k, v;
  const auto add = [&](const CachePool& pool, int item) {
    const auto item_k = pool.Exact(pool.k_exact, item, 1);
    const auto item_v = pool.Exact(pool.v_exact, item, 1);
    k.insert(k.end(), item_k.begin(), item_k.end());
    v.insert(v.end(), item_v.begin(), item_v.end());
  };
  for (const int item : sequence.segments) add(segments, item);
  for (const int item : sequence.pages) add(pages, item);
  std::vector<double> expected(q.size());
  reference::Attend(q, k, v, kGroup, static_cast<int64_t>(k.size()) / kBenchHeadDim, kBenchHeadDim,
                    0.1, expected, {});

  const std::vector<double> got = ReferenceAttention(&segments, &pages, sequence, 1, q, 0.1);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-12) << i;
}

}  // namespace
}  // namespace fourierkv
