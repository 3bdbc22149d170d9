// Continuations of a cache that leave it as it is.

#include "clients/eval/peek_cache.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "compute/cache/dense_kv_cache.h"

namespace fourierkv {
namespace {

constexpr KvGeometry kGeometry = {2, 2, 8};
constexpr int kQueryHeads = 4;

class PeekCacheTest : public testing::Test {
 protected:
  std::vector<float> Random(int64_t size) {
    std::normal_distribution<float> normal;
    std::vector<float> values(size);
    for (float& value : values) value = normal(random_);
    return values;
  }

  // A chunk of n tokens, the same for every layer.
  struct Chunk {
    int n;
    std::vector<float> k, v, q;
  };
  Chunk RandomChunk(int n) {
    const int64_t size = int64_t{n} * kGeometry.kv_heads * kGeometry.head_dim;
    return {n, Random(size), Random(size), Random(int64_t{n} * kQueryHeads * kGeometry.head_dim)};
  }

  // Attention's output of the last layer.
  static std::vector<float> Run(KvCache& cache, const Chunk& chunk) {
    std::vector<float> out(chunk.q.size());
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      EXPECT_TRUE(cache.Append(layer, chunk.n, chunk.k.data(), chunk.v.data()).ok());
      EXPECT_TRUE(cache.Attend(layer, chunk.n, kQueryHeads, chunk.q.data(), out.data()).ok());
    }
    EXPECT_TRUE(cache.Advance(chunk.n).ok());
    return out;
  }

  static void ExpectNear(const std::vector<float>& a, const std::vector<float>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5) << i;
  }

  std::unique_ptr<DenseKvCache> Dense() {
    return *DenseKvCache::Create(kGeometry, backend_.get(), 100);
  }

  const uint64_t seed_ = std::random_device()();
  std::mt19937_64 random_{seed_};
  const std::unique_ptr<ComputeBackend> backend_ = CreateCpuBackend(1);
};

TEST_F(PeekCacheTest, AContinuationIsAsIfTheCacheHadIt) {
  SCOPED_TRACE(seed_);
  const Chunk start = RandomChunk(9), a = RandomChunk(5), b = RandomChunk(1), c = RandomChunk(3);
  const auto base = Dense(), whole = Dense(), other = Dense();
  Run(*base, start);
  Run(*whole, start);
  Run(*other, start);
  PeekCache peek(*base);
  ExpectNear(Run(peek, a), Run(*whole, a));
  ExpectNear(Run(peek, b), Run(*whole, b));
  EXPECT_EQ(peek.length(), 15);
  EXPECT_EQ(base->length(), 9);

  peek.Rewind(0);
  EXPECT_EQ(peek.length(), 9);
  ExpectNear(Run(peek, c), Run(*other, c));
}

TEST_F(PeekCacheTest, RewindingKeepsTheFirstTokens) {
  SCOPED_TRACE(seed_);
  const Chunk start = RandomChunk(4), a = RandomChunk(2), b = RandomChunk(3), c = RandomChunk(2);
  const auto base = Dense(), whole = Dense();
  for (KvCache* cache : {base.get(), whole.get()}) Run(*cache, start);
  PeekCache peek(*base);
  Run(peek, a);
  Run(peek, b);
  peek.Rewind(2);
  Run(*whole, a);
  ExpectNear(Run(peek, c), Run(*whole, c));
}

TEST_F(PeekCacheTest, WrongCallsAreRefused) {
  const auto base = Dense();
  PeekCache peek(*base);
  const Chunk chunk = RandomChunk(2);
  EXPECT_FALSE(peek.Append(2, 2, chunk.k.data(), chunk.v.data()).ok());
  EXPECT_FALSE(peek.Append(-1, 2, chunk.k.data(), chunk.v.data()).ok());
  EXPECT_FALSE(peek.Append(0, 0, chunk.k.data(), chunk.v.data()).ok());
  ASSERT_TRUE(peek.Append(0, 2, chunk.k.data(), chunk.v.data()).ok());
  EXPECT_EQ(peek.Advance(2).code(), absl::StatusCode::kFailedPrecondition);  // layer 1 has none
}

}  // namespace
}  // namespace fourierkv
