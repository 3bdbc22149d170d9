// KV caches in device memory: which places a sequence has, what tables say of them, and what is in
// a segment that was sealed. Needs a GPU; says so and skips without one.

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>
#include <vector>

#include "compute/cache/compact_kv_cache.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/cuda/device_kv_pool.h"
#include "compute/cache/cuda/device_kv_tables.h"
#include "compute/cache/cuda/segment_sealer.h"
#include "compute/codec/reference_codec.h"
#include "tests/compute/cache/cache_test_util.h"

namespace fourierkv {
namespace {

using kernels::kPageTokens;
using testing::HasSubstr;

constexpr KvGeometry kGeometry{3, 2, 64};
constexpr int kSegment = 128;

template <typename T>
std::vector<T> Read(const T* device, size_t n) {
  std::vector<T> host(n);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(host.data(), device, n * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
  return host;
}

class CudaCache : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: caches on a GPU were not tested";
    }
    CodecProfile profile = UniformProfile(kGeometry, 0.5, 0.25, 8, 4);
    profile.segment_tokens = kSegment;
    auto made = DeviceProfile::Create(std::make_shared<const ProfileLayout>(profile));
    ASSERT_TRUE(made.ok()) << made.status();
    profile_ = *std::move(made);
  }

  std::shared_ptr<DeviceKvPool> Pool(int blocks, int slots) {
    auto pool = DeviceKvPool::Create(profile_, {blocks, slots});
    EXPECT_TRUE(pool.ok()) << pool.status();
    return *std::move(pool);
  }
  std::unique_ptr<DeviceKvCache> Cache(std::shared_ptr<DeviceKvPool> pool,
                                       DeviceCacheOptions options = {.recent_window = 128,
                                                                     .max_tokens = 100000}) {
    auto cache = DeviceKvCache::Create(std::move(pool), options);
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }
  // Adds tokens of random content.
  void Extend(DeviceKvCache& cache, int64_t tokens) {
    ASSERT_TRUE(cache.Reserve(tokens).ok());
    ASSERT_TRUE(cache.Advance(tokens).ok());
    for (int32_t block : cache.blocks()) Write(cache.pool(), block);
  }
  void Write(const DeviceKvPool& pool, int32_t block) {
    if (!written_.insert(block).second) return;
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      for (Part part : kParts) {
        const std::vector<uint16_t> values = RandomKv(random_, kSegment * 2 * 64);
        ASSERT_EQ(cudaMemcpy(pool.block(layer, block, part), values.data(), values.size() * 2,
                             cudaMemcpyHostToDevice),
                  cudaSuccess);
      }
    }
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
  std::shared_ptr<const DeviceProfile> profile_;
  std::set<int32_t> written_;
};

TEST_F(CudaCache, PlacesDoNotOverlapAndComeBack) {
  const auto pool = Pool(5, 3);
  EXPECT_EQ(pool->bytes(), 5 * pool->block_bytes() + 3 * pool->slot_bytes());
  EXPECT_EQ(pool->block_bytes(), kGeometry.DenseBytes(kSegment));
  EXPECT_GE(pool->slot_bytes(), profile_->layout().SegmentPayloadBytes());
  std::set<const void*> places;
  for (int layer = 0; layer < kGeometry.layers; ++layer) {
    for (int i = 0; i < 5; ++i) {
      for (Part part : kParts) places.insert(pool->block(layer, i, part));
    }
    for (int i = 0; i < 3; ++i) {
      for (Part part : kParts) {
        places.insert(pool->payload(layer, i, part));
        EXPECT_EQ(reinterpret_cast<uintptr_t>(pool->payload(layer, i, part)) % 16, 0);
      }
    }
  }
  EXPECT_EQ(places.size(), kGeometry.layers * (5 + 3) * 2);

  auto a = Cache(pool), b = Cache(pool);
  EXPECT_TRUE(a->Reserve(3 * kSegment + 1).ok());
  EXPECT_EQ(pool->free_blocks(), 1);
  const absl::Status full = b->Reserve(kSegment + 1);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(std::string(full.message()), HasSubstr("all 5 exact blocks"));
  a.reset();
  EXPECT_TRUE(b->Reserve(5 * kSegment).ok());
  EXPECT_EQ(b->bytes(), 5 * pool->block_bytes());
  b.reset();
  EXPECT_EQ(pool->free_blocks(), 5);
  EXPECT_EQ(pool->free_slots(), 3);
}

TEST_F(CudaCache, RefusesWhatItCannotHold) {
  EXPECT_TRUE(absl::IsInvalidArgument(DeviceKvPool::Create(profile_, {0, 1}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(DeviceKvPool::Create(profile_, {1, -1}).status()));
  const absl::Status huge = DeviceKvPool::Create(profile_, {1 << 24, 0}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(huge)) << huge;
  EXPECT_THAT(std::string(huge.message()), HasSubstr("exact blocks"));
  const auto pool = Pool(2, 0);
  EXPECT_TRUE(absl::IsInvalidArgument(DeviceKvCache::Create(pool, {.max_tokens = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      DeviceKvCache::Create(pool, {.recent_window = -1, .max_tokens = 1}).status()));
  auto cache = Cache(pool, {.max_tokens = 100});
  EXPECT_TRUE(absl::IsResourceExhausted(cache->Reserve(101)));
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->Advance(1)));
  ASSERT_TRUE(cache->Reserve(100).ok());
  EXPECT_TRUE(cache->Advance(100).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(cache->Reserve(1)));
}

TEST_F(CudaCache, SegmentsBecomeCompactByTheRuleOfTheCpusCache) {
  const auto pool = Pool(64, 64);
  auto sealer = *SegmentSealer::Create(pool, 3);
  for (const int64_t window : {int64_t{0}, int64_t{100}, int64_t{512}}) {
    auto cache = Cache(pool, {.recent_window = window, .max_tokens = 5000});
    DeviceKvCache* const one = cache.get();
    while (cache->length() < 4000) {
      Extend(*cache, 1 + random_() % 500);
      ASSERT_TRUE(sealer->Seal({&one, 1}, nullptr).ok());
      const int64_t compact = CompactKvCache::CompactSegments(cache->length(), kSegment, window);
      ASSERT_EQ(cache->slots().size(), compact) << cache->length();
      ASSERT_EQ(cache->exact_tokens(), cache->length() - compact * kSegment);
      ASSERT_EQ(cache->blocks().size(), (cache->exact_tokens() + kSegment - 1) / kSegment);
      written_ = {cache->blocks().begin(), cache->blocks().end()};
    }
    EXPECT_EQ(cache->stats().dense_bytes, kGeometry.DenseBytes(cache->length()));
  }
  auto exact = Cache(pool, {.compact = false, .max_tokens = 5000});
  Extend(*exact, 4000);
  EXPECT_EQ(exact->SegmentsDue(), 0);
}

TEST_F(CudaCache, SealedSegmentsHoldWhatTheReferenceEncodes) {
  const auto pool = Pool(20, 20);
  auto sealer = *SegmentSealer::Create(pool, 4);
  std::vector<std::unique_ptr<DeviceKvCache>> caches;
  std::vector<DeviceKvCache*> all;
  std::vector<std::vector<std::vector<uint16_t>>> dense;  // [cache][block * layers * 2 ...]
  for (const int64_t tokens : {int64_t{5 * kSegment}, int64_t{7 * kSegment - 3}}) {
    caches.push_back(Cache(pool));
    Extend(*caches.back(), tokens);
    all.push_back(caches.back().get());
    dense.emplace_back();
    for (int32_t block : caches.back()->blocks()) {
      for (int layer = 0; layer < kGeometry.layers; ++layer) {
        for (Part part : kParts) {
          dense.back().push_back(Read(pool->block(layer, block, part), kSegment * 2 * 64));
        }
      }
    }
  }
  const absl::Status status = sealer->Seal(all, nullptr);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t c = 0; c < caches.size(); ++c) {
    ASSERT_EQ(caches[c]->slots().size(), c == 0 ? 2 : 4);
    for (size_t i = 0; i < caches[c]->slots().size(); ++i) {
      for (int layer = 0; layer < kGeometry.layers; ++layer) {
        for (Part part : kParts) {
          const PartLayout& layout = profile_->layout().part(layer, part);
          const auto& input =
              dense[c][((i + 1) * kGeometry.layers + layer) * 2 + static_cast<int>(part)];
          std::vector<std::byte> expected(layout.payload_bytes);
          reference::EncodePart(layout, KvDtype::kBf16, input, expected);
          const auto* device =
              reinterpret_cast<const std::byte*>(pool->payload(layer, caches[c]->slots()[i], part));
          const std::vector<std::byte> got = Read(device, layout.payload_bytes);
          int64_t different = 0;
          for (size_t b = 0; b < got.size(); ++b) different += got[b] != expected[b] ? 1 : 0;
          // Quotients that are ties within float rounding are rare.
          EXPECT_LE(different, layout.payload_bytes / 500 + 2)
              << "cache " << c << " segment " << i << " layer " << layer << PartName(part);
        }
      }
    }
  }
}

TEST_F(CudaCache, WhatCannotBeSealedStaysExact) {
  const auto pool = Pool(10, 1);
  auto sealer = *SegmentSealer::Create(pool);
  auto strict = Cache(pool, {.recent_window = 0, .max_tokens = 1000, .max_relative_error = 0});
  DeviceKvCache* one = strict.get();
  Extend(*strict, 2 * kSegment + 5);
  ASSERT_TRUE(sealer->Seal({&one, 1}, nullptr).ok());
  EXPECT_EQ(strict->stats().exact_inside, 1);
  EXPECT_EQ(strict->exact_tokens(), strict->length());
  EXPECT_EQ(pool->free_slots(), 1);

  // Two are due, but there is one slot.
  auto cache = Cache(pool, {.recent_window = 0, .max_tokens = 1000});
  one = cache.get();
  Extend(*cache, 3 * kSegment + 5);
  const absl::Status none = sealer->Seal({&one, 1}, nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(none)) << none;
  EXPECT_EQ(cache->exact_tokens(), cache->length());
  EXPECT_EQ(pool->free_slots(), 1);
  cache.reset();

  cache = Cache(pool, {.recent_window = 0, .max_tokens = 1000});
  one = cache.get();
  Extend(*cache, 2 * kSegment + 5);
  const uint16_t nan = 0x7fc0;
  ASSERT_EQ(cudaMemcpy(pool->block(1, cache->blocks()[1], Part::kV) + (kSegment + 7) * 64 + 9, &nan,
                       2, cudaMemcpyHostToDevice),
            cudaSuccess);
  const absl::Status refused = sealer->Seal({&one, 1}, nullptr);
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("V of layer 1, head 1, channel 9, token 7"));
  EXPECT_EQ(cache->exact_tokens(), cache->length());
  EXPECT_EQ(pool->free_slots(), 1);
}

TEST_F(CudaCache, TablesSayWherePlacesAre) {
  const auto pool = Pool(40, 20);
  auto sealer = *SegmentSealer::Create(pool);
  auto tables = *DeviceKvTables::Create(pool, 3, 4000);
  std::vector<std::unique_ptr<DeviceKvCache>> owners;
  std::vector<DeviceKvCache*> caches;
  for (const int64_t tokens : {int64_t{5}, int64_t{1000}, int64_t{640}}) {
    owners.push_back(Cache(pool));
    caches.push_back(owners.back().get());
    Extend(*caches.back(), tokens);
  }
  ASSERT_TRUE(sealer->Seal(caches, nullptr).ok());
  for (DeviceKvCache* cache : caches) ASSERT_TRUE(cache->Reserve(1).ok());
  const std::vector<const DeviceKvCache*> batch(caches.begin(), caches.end());
  ASSERT_TRUE(tables->Build(batch, 1, nullptr).ok());
  const auto page_offsets = Read(tables->page_offsets(), 4);
  const auto segment_offsets = Read(tables->segment_offsets(), 4);
  for (int layer = 0; layer < kGeometry.layers; ++layer) {
    const auto pages = Read<kernels::PageRef>(tables->pages(layer), page_offsets[3]);
    const auto segments = Read(tables->segments(layer), segment_offsets[3]);
    for (size_t c = 0; c < batch.size(); ++c) {
      const DeviceKvCache& cache = *batch[c];
      const int64_t tokens = cache.exact_tokens() + 1;
      ASSERT_EQ(page_offsets[c + 1] - page_offsets[c], (tokens + kPageTokens - 1) / kPageTokens);
      for (int64_t t = 0; t < tokens; t += kPageTokens) {
        const kernels::PageRef& page = pages[page_offsets[c] + t / kPageTokens];
        const int64_t inside = t % kSegment * kGeometry.head_dim;
        const int32_t block = cache.blocks()[t / kSegment];
        ASSERT_EQ(page.k, pool->block(layer, block, Part::kK) + inside);
        ASSERT_EQ(page.v, pool->block(layer, block, Part::kV) + inside);
        ASSERT_EQ(page.tokens, std::min<int64_t>(kPageTokens, tokens - t));
      }
      EXPECT_EQ(tables->PageOf(c, cache, cache.length()), page_offsets[c + 1] - 1);
      ASSERT_EQ(segment_offsets[c + 1] - segment_offsets[c], cache.slots().size());
      for (size_t i = 0; i < cache.slots().size(); ++i) {
        const kernels::SegmentRef& segment = segments[segment_offsets[c] + i];
        ASSERT_EQ(segment.k, pool->payload(layer, cache.slots()[i], Part::kK));
        ASSERT_EQ(segment.v, pool->payload(layer, cache.slots()[i], Part::kV));
      }
    }
  }

  auto dense = Cache(pool, {.compact = false, .max_tokens = 4000});
  Extend(*dense, 300);
  ASSERT_TRUE(dense->Reserve(50).ok());
  ASSERT_TRUE(tables->BuildTiles(*dense, 50, nullptr, nullptr).ok());
  ASSERT_EQ(tables->tile_count(), 6);
  for (int layer = 0; layer < kGeometry.layers; ++layer) {
    const auto tiles = Read(tables->tiles(layer), 6);
    for (int t = 0; t < 6; ++t) {
      const int32_t block = dense->blocks()[t * kPageTokens / kSegment];
      const int64_t inside = t * kPageTokens % kSegment * kGeometry.head_dim;
      EXPECT_EQ(tiles[t].k, pool->block(layer, block, Part::kK) + inside);
      EXPECT_EQ(tiles[t].v, pool->block(layer, block, Part::kV) + inside);
      EXPECT_EQ(tiles[t].head_stride, kSegment * kGeometry.head_dim);
      EXPECT_EQ(tiles[t].first, t * kPageTokens);
      EXPECT_EQ(tiles[t].tokens, t < 5 ? kPageTokens : 350 - 5 * kPageTokens);
    }
  }
}

}  // namespace
}  // namespace fourierkv
