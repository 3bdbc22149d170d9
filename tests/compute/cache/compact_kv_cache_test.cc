#include "compute/cache/compact_kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "compute/codec/segment_blob.h"
#include "tests/compute/cache/cache_test_util.h"
#include "tests/compute/cache/reference_backend.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

constexpr int kS = kTestSegment;

class CompactKvCacheTest : public testing::Test {
 protected:
  CompactKvCacheTest()
      : random_(seed_), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed_)) {}

  std::unique_ptr<CompactKvCache> Make(int64_t window) {
    auto cache =
        CompactKvCache::Create(layout_, &backend_, {.recent_window = window, .max_tokens = 2000});
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }

  // A cache of `length` random tokens.
  std::unique_ptr<CompactKvCache> MakeFull(const TokenKv& kv, int64_t length, int64_t window) {
    auto cache = Make(window);
    for (int64_t t = 0; t < length;) {
      const int n = static_cast<int>(std::min<int64_t>(length - t, 1 + random_() % 200));
      EXPECT_TRUE(AppendAll(*cache, kv, t, n).ok());
      t += n;
    }
    return cache;
  }

  std::vector<float> AttendNext(CompactKvCache& cache, int layer, const TokenKv& next,
                                const std::vector<float>& q) {
    std::vector<float> out(q.size());
    EXPECT_TRUE(cache.Append(layer, 1, next.k[layer].data(), next.v[layer].data()).ok());
    EXPECT_TRUE(cache.Attend(layer, 1, kTestQueryHeads, q.data(), out.data()).ok());
    return out;
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 random_;
  testing::ScopedTrace trace_;
  ReferenceBackend backend_;
  std::shared_ptr<const ProfileLayout> layout_ = TestLayout();
};

TEST_F(CompactKvCacheTest, SealsTheOldestSegmentWhenTheRecentWindowIsASegmentTooLong) {
  auto cache = Make(/*window=*/100);
  const TokenKv kv = RandomTokens(random_, 1000);
  for (int t = 0; t < 700; ++t) {
    ASSERT_TRUE(AppendAll(*cache, kv, t, 1).ok());
    const CacheStats stats = cache->stats();
    const int64_t recent = stats.exact_tokens - kS;  // behind the sink
    ASSERT_EQ(stats.exact_tokens + stats.compact_segments * kS, t + 1);
    ASSERT_LE(recent, 100 + kS);
    ASSERT_TRUE(stats.compact_segments == 0 || recent > 100) << recent;
    ASSERT_EQ(stats.compact_segments, CompactKvCache::CompactSegments(t + 1, kS, 100));
  }
  EXPECT_EQ(cache->stats().compact_segments, 3);
  EXPECT_EQ(backend_.encode_calls, 3) << "one call encodes all layers of a segment";
}

TEST_F(CompactKvCacheTest, BytesAreThoseOfPayloadsHeadersAndExactTokens) {
  const TokenKv kv = RandomTokens(random_, 700);
  auto cache = MakeFull(kv, 700, 100);
  const int64_t segment =
      layout_->SegmentPayloadBytes() + 2 * kTestGeometry.layers * int64_t{kBlobHeaderBytes};
  const CacheStats stats = cache->stats();
  EXPECT_EQ(stats.compact_bytes, 3 * segment);
  EXPECT_EQ(stats.exact_bytes, kTestGeometry.DenseBytes(700 - 3 * kS));
  EXPECT_EQ(stats.dense_bytes, kTestGeometry.DenseBytes(700));
  EXPECT_EQ(cache->bytes(), stats.compact_bytes + stats.exact_bytes);
}

TEST_F(CompactKvCacheTest, ResultsDoNotDependOnTheChunks) {
  const TokenKv kv = RandomTokens(random_, 901);
  auto whole = Make(64), pieces = MakeFull(kv, 901, 64);
  ASSERT_TRUE(AppendAll(*whole, kv, 0, 901).ok());
  EXPECT_EQ(whole->stats().compact_segments, pieces->stats().compact_segments);
  const TokenKv next = RandomTokens(random_, 1);
  const auto q = RandomFloats(random_, kTestQueryHeads * kTestGeometry.head_dim);
  for (int l = 0; l < kTestGeometry.layers; ++l) {
    EXPECT_EQ(AttendNext(*whole, l, next, q), AttendNext(*pieces, l, next, q));
  }
}

TEST_F(CompactKvCacheTest, AttendsOverTheDecodedSegments) {
  // With every channel resident in 8 bits the compact cache must come close to the dense one.
  layout_ = TestLayout(0, 0);
  const TokenKv kv = RandomTokens(random_, 700);
  auto cache = MakeFull(kv, 700, 100);
  ASSERT_EQ(cache->stats().compact_segments, 3);
  auto dense = DenseKvCache::Create(kTestGeometry, &backend_, 1000);
  ASSERT_TRUE(dense.ok() && AppendAll(**dense, kv, 0, 700).ok());
  const TokenKv next = RandomTokens(random_, 1);
  const auto q = RandomFloats(random_, kTestQueryHeads * kTestGeometry.head_dim);
  const std::vector<float> compact = AttendNext(*cache, 0, next, q);
  std::vector<float> expected(q.size());
  ASSERT_TRUE((*dense)->Append(0, 1, next.k[0].data(), next.v[0].data()).ok());
  ASSERT_TRUE((*dense)->Attend(0, 1, kTestQueryHeads, q.data(), expected.data()).ok());
  for (size_t i = 0; i < q.size(); ++i) EXPECT_NEAR(compact[i], expected[i], 0.02);
}

TEST_F(CompactKvCacheTest, AFailedEncodingKeepsTheTokensExact) {
  auto cache = Make(0);
  const TokenKv kv = RandomTokens(random_, 400);
  backend_.encode_status = absl::InvalidArgumentError("K of head 1 is NaN");
  EXPECT_EQ(AppendAll(*cache, kv, 0, 400), backend_.encode_status);
  EXPECT_EQ(cache->length(), 400);
  EXPECT_EQ(cache->stats().exact_tokens, 400);
  EXPECT_TRUE(cache->TakeSealed().empty());
  backend_.encode_status = absl::OkStatus();
  ASSERT_TRUE(AppendAll(*cache, kv, 0, 1).ok());
  EXPECT_EQ(cache->stats().compact_segments, 2);
}

TEST_F(CompactKvCacheTest, SealedSegmentsBecomeBlobsThatAnotherCacheTakes) {
  const TokenKv kv = RandomTokens(random_, 700);
  auto source = MakeFull(kv, 700, 100);
  const std::vector<SealedSegment> sealed = source->TakeSealed();
  ASSERT_EQ(sealed.size(), 3);
  EXPECT_TRUE(source->TakeSealed().empty());
  Digest key;
  key.bytes[5] = 9;
  for (size_t s = 0; s < sealed.size(); ++s) {
    EXPECT_EQ(sealed[s].index, s + 1);
    WriteHeaders(sealed[s], *layout_, key);
    for (const SealedPart& part : sealed[s].parts) {
      const auto header = OpenBlob(*part.blob);
      ASSERT_TRUE(header.ok()) << header.status();
      EXPECT_EQ(header->block_key, key);
      EXPECT_EQ(header->first_token, (s + 1) * kS);
      EXPECT_EQ(header->relative_error, part.relative_error);
      EXPECT_GT(part.relative_error, 0);
    }
  }

  auto filled = Make(100);
  ASSERT_TRUE(filled->BeginFill({700, 3}, absl::InfiniteFuture()).ok());
  const TokenKv next = RandomTokens(random_, 1);
  const auto q = RandomFloats(random_, kTestQueryHeads * kTestGeometry.head_dim);
  std::thread filler([&] {
    for (int l = 0; l < kTestGeometry.layers; ++l) {
      for (int64_t s = 3; s >= 1; --s) {
        const auto& parts = sealed[s - 1].parts;
        const absl::Status status = filled->InstallCompact(l, s, SharedBytes::Of(parts[l * 2].blob),
                                                           SharedBytes::Of(parts[l * 2 + 1].blob));
        EXPECT_TRUE(status.ok()) << status;
      }
      for (const auto& [first, n] : {std::pair{4 * kS, 700 - 4 * kS}, {0, kS}}) {
        EXPECT_TRUE(filled
                        ->InstallExact(l, first, n, ByHead(kv.k[l], first, n).data(),
                                       ByHead(kv.v[l], first, n).data())
                        .ok());
      }
      EXPECT_TRUE(filled->MarkLayerReady(l).ok());
    }
  });
  for (int l = 0; l < kTestGeometry.layers; ++l) {
    EXPECT_EQ(AttendNext(*filled, l, next, q), AttendNext(*source, l, next, q));
  }
  filler.join();
  ASSERT_TRUE(filled->Advance(1).ok() && source->Advance(1).ok());
  EXPECT_EQ(filled->bytes(), source->bytes());
}

TEST_F(CompactKvCacheTest, InstallRefusesBlobsThatWereMadeForAnotherPlace) {
  const TokenKv kv = RandomTokens(random_, 700);
  auto source = MakeFull(kv, 700, 100);
  const std::vector<SealedSegment> sealed = source->TakeSealed();
  for (const SealedSegment& segment : sealed) WriteHeaders(segment, *layout_, Digest{});
  const auto blob = [&](int segment, int layer, Part part) {
    return SharedBytes::Of(sealed[segment - 1].parts[layer * 2 + static_cast<int>(part)].blob);
  };
  const SharedBytes k = blob(1, 0, Part::kK), v = blob(1, 0, Part::kV);

  auto cache = Make(100);
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->InstallCompact(0, 1, k, v)));
  ASSERT_TRUE(cache->BeginFill({700, 3}, absl::InfiniteFuture()).ok());
  const auto expect_refused = [&](const absl::Status& status, const std::string& why) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  expect_refused(cache->InstallCompact(0, 0, k, v), "segment 0");
  expect_refused(cache->InstallCompact(0, 4, k, v), "segment 4");
  expect_refused(cache->InstallCompact(2, 1, k, v), "layer 2");
  expect_refused(cache->InstallCompact(1, 1, k, v), "belongs to layer 0");
  expect_refused(cache->InstallCompact(0, 2, k, v), "starts at position 128");
  expect_refused(cache->InstallCompact(0, 1, v, k), "it holds V");

  std::vector<std::byte> damaged(k.span().begin(), k.span().end());
  damaged[kBlobHeaderBytes + 3] ^= std::byte{1};
  const absl::Status damage = cache->InstallCompact(
      0, 1, SharedBytes::Of(std::make_shared<const std::vector<std::byte>>(damaged)), v);
  EXPECT_TRUE(absl::IsDataLoss(damage)) << damage;
  EXPECT_TRUE(absl::IsDataLoss(cache->InstallCompact(0, 1, SharedBytes{}, v)));

  // A whole, sealed blob whose first scale is NaN: head 0, band 0 begins with its bf16 scales.
  std::vector<std::byte> nan(k.span().begin(), k.span().end());
  nan[kBlobHeaderBytes] = nan[kBlobHeaderBytes + 1] = std::byte{0x7f};
  SealBlob(*OpenBlob(k.span()), nan);
  expect_refused(cache->InstallCompact(
                     0, 1, SharedBytes::Of(std::make_shared<const std::vector<std::byte>>(nan)), v),
                 "K of layer 0 of segment 1");

  layout_ = TestLayout(0.25, 0.5);
  auto other_profile = Make(100);
  ASSERT_TRUE(other_profile->BeginFill({700, 3}, absl::InfiniteFuture()).ok());
  expect_refused(other_profile->InstallCompact(0, 1, k, v), "another codec profile");
}

TEST_F(CompactKvCacheTest, InstallTakesBlobsAtOddAddresses) {
  const TokenKv kv = RandomTokens(random_, 700);
  const std::vector<SealedSegment> sealed = MakeFull(kv, 700, 100)->TakeSealed();
  WriteHeaders(sealed[0], *layout_, Digest{});
  std::vector<SharedBytes> odd;
  for (int part : {0, 1}) {
    const std::vector<std::byte>& blob = *sealed[0].parts[part].blob;
    auto storage = std::make_shared<std::vector<std::byte>>(blob.size() + 1);
    std::copy(blob.begin(), blob.end(), storage->begin() + 1);
    odd.push_back({std::shared_ptr<const std::byte>(storage, storage->data() + 1), blob.size()});
  }
  auto cache = Make(100);
  ASSERT_TRUE(cache->BeginFill({700, 1}, absl::InfiniteFuture()).ok());
  EXPECT_TRUE(cache->InstallCompact(0, 1, odd[0], odd[1]).ok());
}

TEST_F(CompactKvCacheTest, AFillNeedsEverySegmentAndKeepsExactTokensOutOfTheCompactPart) {
  const std::vector<uint16_t> kv = RandomKv(random_, 700 * 32);
  auto cache = Make(100);
  EXPECT_TRUE(absl::IsInvalidArgument(cache->BeginFill({700, 5}, absl::InfiniteFuture())));
  ASSERT_TRUE(cache->BeginFill({700, 3}, absl::InfiniteFuture()).ok());
  for (const auto& [first, n] :
       {std::pair{kS, 1}, {kS - 1, 2}, {0, 700}, {4 * kS - 1, 1}, {3 * kS, 2 * kS}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(cache->InstallExact(0, first, n, kv.data(), kv.data())));
  }
  cache->FailFill(absl::UnavailableError("gone"));
  EXPECT_EQ(cache->Compact(), absl::UnavailableError("gone"));
  ASSERT_TRUE(cache->InstallExact(0, 0, kS, kv.data(), kv.data()).ok());
  EXPECT_THAT(std::string(cache->MarkLayerReady(0).message()), HasSubstr("position 512"));
  ASSERT_TRUE(cache->InstallExact(0, 4 * kS, 700 - 4 * kS, kv.data(), kv.data()).ok());
  EXPECT_THAT(std::string(cache->MarkLayerReady(0).message()), HasSubstr("segment 1"));
}

TEST_F(CompactKvCacheTest, AFillWithFewerCompactSegmentsIsSealedOnDemandOrAtTheNextAdvance) {
  const TokenKv kv = RandomTokens(random_, 701);
  auto cache = Make(100), early = Make(100);
  for (CompactKvCache* filled : {cache.get(), early.get()}) {
    ASSERT_TRUE(filled->BeginFill({700, 0}, absl::InfiniteFuture()).ok());
    for (int l = 0; l < kTestGeometry.layers; ++l) {
      ASSERT_TRUE(filled
                      ->InstallExact(l, 0, 700, ByHead(kv.k[l], 0, 700).data(),
                                     ByHead(kv.v[l], 0, 700).data())
                      .ok());
      ASSERT_TRUE(filled->MarkLayerReady(l).ok());
    }
  }
  ASSERT_TRUE(early->Compact().ok());
  EXPECT_EQ(early->stats().compact_segments, 3);
  ASSERT_TRUE(AppendAll(*cache, kv, 700, 1).ok());
  EXPECT_EQ(cache->stats().compact_segments, 3);
  ASSERT_TRUE(AppendAll(*early, kv, 700, 1).ok());
  auto computed = MakeFull(kv, 701, 100);
  const TokenKv next = RandomTokens(random_, 1);
  const auto q = RandomFloats(random_, kTestQueryHeads * kTestGeometry.head_dim);
  const std::vector<float> expected = AttendNext(*computed, 0, next, q);
  EXPECT_EQ(AttendNext(*cache, 0, next, q), expected);
  EXPECT_EQ(AttendNext(*early, 0, next, q), expected);
}

TEST_F(CompactKvCacheTest, CreateBoundsItsOptions) {
  for (const CompactCacheOptions& options :
       {CompactCacheOptions{-1, 10}, {int64_t{1} << 21, 10}, {0, 0}, {0, kMaxCacheTokens + 1}}) {
    EXPECT_TRUE(
        absl::IsInvalidArgument(CompactKvCache::Create(layout_, &backend_, options).status()));
  }
}

TEST_F(CompactKvCacheTest, SegmentsThatCompressTooBadlyStayExactWhereTheyAre) {
  // Noise in segments 2 and 4, and constants elsewhere.
  TokenKv kv = RandomTokens(random_, 900);
  const size_t token = kTestGeometry.kv_heads * kTestGeometry.head_dim;
  for (auto* part : {&kv.k, &kv.v}) {
    for (auto& layer : *part) {
      for (size_t i = token; i < layer.size(); ++i) {
        const size_t segment = i / token / kS;
        if (segment != 2 && segment != 4) layer[i] = layer[i % token];
      }
    }
  }
  auto cache = CompactKvCache::Create(
      layout_, &backend_, {.recent_window = 64, .max_tokens = 2000, .max_relative_error = 0.1f});
  ASSERT_TRUE(cache.ok()) << cache.status();
  for (int t = 0; t < 900;) {
    const int n = std::min<int>(900 - t, 1 + static_cast<int>(random_() % 200));
    ASSERT_TRUE(AppendAll(**cache, kv, t, n).ok());
    t += n;
  }
  const CacheStats stats = (*cache)->stats();
  EXPECT_EQ(stats.exact_inside, 2);
  EXPECT_EQ(stats.compact_segments, CompactKvCache::CompactSegments(900, kS, 64) - 2);
  EXPECT_EQ(stats.exact_tokens + stats.compact_segments * kS, 900);
  std::vector<int64_t> sealed;
  for (const SealedSegment& segment : (*cache)->TakeSealed()) sealed.push_back(segment.index);
  EXPECT_EQ(sealed, (std::vector<int64_t>{1, 3, 5}));
  // Exact tokens keep their order of position: the sink, segment 2, segment 4, and the last ones.
  const ExactBlock exact = (*cache)->exact_block(1);
  ASSERT_EQ(exact.tokens, 900 - 3 * kS);
  for (const auto& [index, position] :
       {std::pair{0, 0}, {kS, 2 * kS}, {3 * kS - 1, 5 * kS - 1}, {3 * kS, 6 * kS}}) {
    EXPECT_EQ(exact.k[index * kTestGeometry.head_dim],
              FloatToBf16(kv.k[1][static_cast<size_t>(position) * token]))
        << position;
  }
  // Attention is that of a dense cache, as constants are encoded almost without error.
  auto dense = DenseKvCache::Create(kTestGeometry, &backend_, 1000);
  ASSERT_TRUE(dense.ok() && AppendAll(**dense, kv, 0, 900).ok());
  const TokenKv next = RandomTokens(random_, 1);
  const auto q = RandomFloats(random_, kTestQueryHeads * kTestGeometry.head_dim);
  const std::vector<float> compact = AttendNext(**cache, 0, next, q);
  std::vector<float> expected(q.size());
  ASSERT_TRUE((*dense)->Append(0, 1, next.k[0].data(), next.v[0].data()).ok());
  ASSERT_TRUE((*dense)->Attend(0, 1, kTestQueryHeads, q.data(), expected.data()).ok());
  for (size_t i = 0; i < q.size(); ++i) EXPECT_NEAR(compact[i], expected[i], 0.03);
}

TEST_F(CompactKvCacheTest, AFillMayHoldSegmentsExactlyInsideTheCompactPart) {
  const TokenKv kv = RandomTokens(random_, 700);
  auto source = MakeFull(kv, 700, 100);
  const std::vector<SealedSegment> sealed = source->TakeSealed();
  ASSERT_EQ(sealed.size(), 3);
  auto cache = Make(100);
  ASSERT_TRUE(cache->BeginFill({700, 3, {2}}, absl::InfiniteFuture()).ok());
  for (const SealedSegment& segment : sealed) WriteHeaders(segment, *layout_, Digest{});
  const auto install_exact = [&](int layer, int64_t first, int64_t n) {
    return cache->InstallExact(layer, first, n, ByHead(kv.k[layer], first, n).data(),
                               ByHead(kv.v[layer], first, n).data());
  };
  const auto install_compact = [&](int layer, int64_t segment) {
    const auto& parts = sealed[segment - 1].parts;
    return cache->InstallCompact(layer, segment, SharedBytes::Of(parts[2 * layer].blob),
                                 SharedBytes::Of(parts[2 * layer + 1].blob));
  };
  for (int l = 0; l < kTestGeometry.layers; ++l) {
    ASSERT_TRUE(install_exact(l, 4 * kS, 700 - 4 * kS).ok());
    ASSERT_TRUE(install_compact(l, 3).ok());
    ASSERT_TRUE(install_compact(l, 1).ok());
    EXPECT_THAT(install_compact(l, 2).ToString(), HasSubstr("segment 2 is not among"));
    EXPECT_FALSE(install_exact(l, kS, kS).ok()) << "compact";
    EXPECT_FALSE(install_exact(l, 0, 3 * kS).ok()) << "compact in between";
    EXPECT_FALSE(install_exact(l, 2 * kS - 1, 2).ok());
    EXPECT_FALSE(install_exact(l, 3 * kS - 1, 2).ok());
    ASSERT_TRUE(install_exact(l, 0, kS).ok());
    ASSERT_TRUE(install_exact(l, 2 * kS, kS - 1).ok());
    EXPECT_THAT(cache->MarkLayerReady(l).ToString(),
                HasSubstr(absl::StrCat("position ", 3 * kS - 1)));
    ASSERT_TRUE(install_exact(l, 3 * kS - 1, 1).ok());
    ASSERT_TRUE(cache->MarkLayerReady(l).ok());
  }
  EXPECT_EQ(cache->stats().compact_segments, 2);
  EXPECT_EQ(cache->stats().exact_inside, 1);
  // The same tokens, with segment 2 exact, in a cache that never compressed it.
  const ExactBlock exact = cache->exact_block(0);
  const ExactBlock whole = source->exact_block(0);
  ASSERT_EQ(exact.tokens, whole.tokens + kS);
  EXPECT_EQ(exact.v[kS * kTestGeometry.head_dim],
            FloatToBf16(kv.v[0][size_t{2} * kS * kTestGeometry.kv_heads * kTestGeometry.head_dim]));
  const TokenKv next = RandomTokens(random_, 400);
  ASSERT_TRUE(AppendAll(*cache, next, 0, 400).ok());
  EXPECT_EQ(cache->stats().exact_inside, 1);
  EXPECT_EQ(cache->stats().compact_segments, CompactKvCache::CompactSegments(1100, kS, 100) - 1);
}

TEST_F(CompactKvCacheTest, BoundsAndPlansThatCannotBeAreRefused) {
  for (const float bound : {-1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_THAT(
        CompactKvCache::Create(layout_, &backend_, {.max_tokens = 10, .max_relative_error = bound})
            .status()
            .ToString(),
        HasSubstr("max_relative_error"));
  }
  for (const std::vector<int64_t>& inside :
       std::vector<std::vector<int64_t>>{{0}, {4}, {2, 2}, {3, 1}, {-1}}) {
    EXPECT_THAT(Make(0)->BeginFill({700, 3, inside}, absl::InfiniteFuture()).ToString(),
                HasSubstr("exact_inside"));
  }
}

TEST_F(CompactKvCacheTest, ABlobBeyondTheBoundIsNotInstalled) {
  const TokenKv kv = RandomTokens(random_, 700);
  auto source = MakeFull(kv, 700, 100);
  const std::vector<SealedSegment> sealed = source->TakeSealed();
  WriteHeaders(sealed[0], *layout_, Digest{});
  auto cache = CompactKvCache::Create(
      layout_, &backend_, {.recent_window = 100, .max_tokens = 2000, .max_relative_error = 1e-4f});
  ASSERT_TRUE((*cache)->BeginFill({700, 3, {}}, absl::InfiniteFuture()).ok());
  EXPECT_THAT((*cache)
                  ->InstallCompact(0, 1, SharedBytes::Of(sealed[0].parts[0].blob),
                                   SharedBytes::Of(sealed[0].parts[1].blob))
                  .ToString(),
              HasSubstr("relative error"));
}

}  // namespace
}  // namespace fourierkv
