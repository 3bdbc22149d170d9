#include "kv_service/tiers/disk_tier.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "disk_fixture.h"

namespace fourierkv {
namespace {

constexpr absl::Time kNoDeadline = absl::InfiniteFuture();

class DiskTierTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(disk_.Reopen().ok()); }
  absl::Status Store(std::span<const StoredSegment> segments) {
    return disk_.tier().Store(segments, kNoDeadline);
  }
  std::vector<BlockKey> Keys(std::span<const StoredSegment> segments) {
    std::vector<BlockKey> keys;
    for (const StoredSegment& segment : segments) keys.push_back(segment.key);
    return keys;
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 rng_{seed_};
  DiskFixture disk_;
};

TEST_F(DiskTierTest, GivesBackWhatItStoredAndKeepsItWhenOpenedAgain) {
  SCOPED_TRACE(seed_);
  auto chain = disk_.Chain(rng_, 5, 17);
  chain[2].error_bound = 0.5f;
  ASSERT_TRUE(Store(chain).ok());
  EXPECT_TRUE(disk_.HoldsAll(chain));
  EXPECT_EQ(disk_.tier().Stats().segments, 6);
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(disk_.Reopen().ok());
    EXPECT_TRUE(disk_.HoldsAll(chain));
    // The codec profile came back as well: without it, nothing could be described.
    EXPECT_TRUE(disk_.profiles().Get(*chain[0].context->ns.profile_id).ok());
    const auto described = disk_.tier().Describe(Keys(chain), kNoDeadline);
    ASSERT_TRUE(described.ok());
    for (size_t i = 0; i < chain.size(); ++i) {
      const StoredSegment& segment = (*described)[i]->segment;
      EXPECT_EQ(segment.parent, chain[i].parent);
      EXPECT_EQ(segment.context->ns, chain[i].context->ns);
      EXPECT_EQ(segment.index, chain[i].index);
      EXPECT_EQ(segment.tail, chain[i].tail);
      EXPECT_EQ(segment.error_bound, chain[i].error_bound);
      EXPECT_EQ((*described)[i]->forms[SegmentForm::kExact].bytes,
                chain[i].forms[SegmentForm::kExact]->bytes());
    }
  }
}

TEST_F(DiskTierTest, StoringAgainAddsOnlyWhatIsMissing) {
  const auto chain = disk_.Chain(rng_, 2);
  auto exact = chain;
  for (StoredSegment& segment : exact) segment.forms[SegmentForm::kCompact] = nullptr;
  ASSERT_TRUE(Store(exact).ok());
  const int64_t before = disk_.tier().Stats().bytes;
  ASSERT_TRUE(Store(exact).ok());
  EXPECT_EQ(disk_.tier().Stats().bytes, before);
  ASSERT_TRUE(Store(chain).ok());
  EXPECT_GT(disk_.tier().Stats().bytes, before);
  EXPECT_TRUE(disk_.HoldsAll(chain));
}

TEST_F(DiskTierTest, TheLowerErrorBoundHolds) {
  auto chain = disk_.Chain(rng_, 1);
  ASSERT_TRUE(Store(chain).ok());
  for (const float bound : {0.25f, 0.5f}) {
    chain[0].error_bound = bound;
    ASSERT_TRUE(Store(chain).ok());
    ASSERT_TRUE(disk_.Reopen().ok());
    const auto described = disk_.tier().Describe(Keys(chain), kNoDeadline);
    EXPECT_EQ((*described)[0]->segment.error_bound, 0.25f);
  }
}

TEST_F(DiskTierTest, ParentsMustBeThere) {
  const auto chain = disk_.Chain(rng_, 3);
  EXPECT_EQ(Store(std::span(chain).subspan(1)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(disk_.tier().Stats().segments, 0);
  StoredSegment empty = chain[0];
  empty.forms = {};
  EXPECT_EQ(Store(std::span(&empty, 1)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(DiskTierTest, RecordsLargerThanABatchComeBack) {
  CacheNamespace ns = SmallNamespace();
  ns.geometry = {.layers = 4, .kv_heads = 16, .head_dim = 256};
  ns.segment_tokens = 1024;
  auto context = MakeNamespaceContext(ns, nullptr);
  auto chain = MakeChain(*context, RandomTokens(rng_, 1024));
  chain[0].forms[SegmentForm::kExact] =
      RandomForm(rng_, chain[0], SegmentForm::kExact, disk_.budget());
  disk_.options().limit_bytes = int64_t{256} << 20;
  ASSERT_TRUE(disk_.Reopen().ok());
  ASSERT_TRUE(Store(chain).ok());
  EXPECT_TRUE(disk_.HoldsAll(chain));
  ASSERT_TRUE(disk_.Reopen().ok());
  EXPECT_TRUE(disk_.HoldsAll(chain));
}

TEST_F(DiskTierTest, RemovesWhatContinuesASegmentForGood) {
  const auto chain = disk_.Chain(rng_, 4, 3);
  ASSERT_TRUE(Store(chain).ok());
  ASSERT_TRUE(disk_.tier().Remove(std::span(&chain[2].key, 1), kNoDeadline).ok());
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(disk_.HoldsAll(std::span(chain).first(2)));
    for (size_t i = 2; i < chain.size(); ++i) EXPECT_FALSE(disk_.Holds(chain[i]));
    EXPECT_EQ(disk_.LoadForm(chain[3], SegmentForm::kExact).status().code(),
              absl::StatusCode::kNotFound);
    ASSERT_TRUE(disk_.Reopen().ok());
  }
  ASSERT_TRUE(Store(chain).ok());
  EXPECT_TRUE(disk_.HoldsAll(chain));
}

TEST_F(DiskTierTest, StaysBelowItsLimitAndEvictsLeavesLeastRecentlyUsedFirst) {
  SCOPED_TRACE(seed_);
  disk_.options().limit_bytes = int64_t{2} << 20;
  ASSERT_TRUE(disk_.Reopen().ok());
  const auto live = static_cast<int64_t>(kLiveShare * disk_.options().limit_bytes);
  const auto used = disk_.Chain(rng_, 3);
  const auto leased = disk_.Chain(rng_, 3);
  ASSERT_TRUE(Store(used).ok());
  ASSERT_TRUE(Store(leased).ok());
  disk_.tier().Touch(Keys(leased), absl::Now() + absl::Hours(1));
  const auto first = disk_.Chain(rng_, 3);
  ASSERT_TRUE(Store(first).ok());
  for (int i = 0; i < 40; ++i) {
    disk_.tier().Touch(Keys(used), absl::InfinitePast());
    ASSERT_TRUE(Store(disk_.Chain(rng_, 3)).ok());
    ASSERT_LE(disk_.tier().Stats().bytes, live);
  }
  EXPECT_TRUE(disk_.HoldsAll(used));
  EXPECT_TRUE(disk_.HoldsAll(leased));
  for (const StoredSegment& segment : first) EXPECT_FALSE(disk_.Holds(segment));
  EXPECT_GT(disk_.tier().Stats().evicted_segments, 0);
  const int64_t segments = disk_.tier().Stats().segments;
  ASSERT_TRUE(disk_.Reopen().ok());
  EXPECT_EQ(disk_.tier().Stats().segments, segments);  // what was evicted does not come back
}

TEST_F(DiskTierTest, FullOfLeasedSegmentsItRefusesAndGoesOn) {
  disk_.options().limit_bytes = int64_t{1} << 20;
  ASSERT_TRUE(disk_.Reopen().ok());
  std::vector<StoredSegment> last;
  absl::Status status;
  for (int i = 0; i < 60 && status.ok(); ++i) {
    const auto chain = disk_.Chain(rng_, 2);
    status = Store(chain);
    if (status.ok()) last = chain;
    disk_.tier().Touch(Keys(chain), absl::Now() + absl::Hours(1));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(disk_.HoldsAll(last));
  EXPECT_TRUE(disk_.tier().Stats().healthy);
}

TEST_F(DiskTierTest, ADeadlineThatHasPassedEndsReadsAndWrites) {
  const auto chain = disk_.Chain(rng_, 2);
  EXPECT_EQ(disk_.tier().Store(chain, absl::InfinitePast()).code(),
            absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(Store(chain).ok());
  EXPECT_EQ(disk_.LoadForm(chain[0], SegmentForm::kExact, absl::InfinitePast()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(disk_.HoldsAll(chain));
}

TEST_F(DiskTierTest, ReadingTakesMemoryOfTheBudgetOnly) {
  const auto chain = disk_.Chain(rng_, 1);
  ASSERT_TRUE(Store(chain).ok());
  const auto small = MemoryBudget::Create("small", 1000);
  const TierWant want{.segment = &chain[0], .form = SegmentForm::kExact};
  const auto results = disk_.tier().Load(std::span(&want, 1), *small, kNoDeadline);
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(small->used(), 0);
}

TEST_F(DiskTierTest, ManyThreadsStoreReadAndRemove) {
  SCOPED_TRACE(seed_);
  disk_.options().limit_bytes = int64_t{8} << 20;
  ASSERT_TRUE(disk_.Reopen().ok());
  const auto shared = disk_.Chain(rng_, 3);
  ASSERT_TRUE(Store(shared).ok());
  disk_.tier().Touch(Keys(shared), absl::Now() + absl::Hours(1));
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, seed = rng_()] {
      std::mt19937 rng(seed);
      for (int i = 0; i < 12; ++i) {
        auto chain = disk_.Chain(rng, 2);
        EXPECT_TRUE(Store(chain).ok());
        EXPECT_TRUE(Store(shared).ok());
        int held = 0;
        EXPECT_TRUE(disk_.HoldsNothingElse(chain, &held));
        EXPECT_TRUE(disk_.HoldsAll(shared));
        if (i % 3 == 0) {
          EXPECT_TRUE(disk_.tier().Remove(std::span(&chain[0].key, 1), kNoDeadline).ok());
          EXPECT_FALSE(disk_.Holds(chain[1]));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DiskTierTest, ProfilesAreKeptWithoutSegments) {
  const auto context = SmallContext(true);
  ASSERT_TRUE(disk_.tier().StoreProfile(*context->layout, kNoDeadline).ok());
  ASSERT_TRUE(disk_.Reopen().ok());
  EXPECT_TRUE(disk_.profiles().Get(*context->ns.profile_id).ok());
  EXPECT_EQ(disk_.tier().LoadProfiles(kNoDeadline)->size(), 1);
}

TEST_F(DiskTierTest, DirectoriesThatItCannotHaveAreToldApart) {
  ProfileStore profiles;
  NamespaceDirectory namespaces(&profiles);
  const auto open = [&](DiskTierOptions options) {
    return OpenDiskTier(options, &profiles, &namespaces).status();
  };
  DiskTierOptions options = disk_.options();
  EXPECT_EQ(open(options).code(), absl::StatusCode::kFailedPrecondition);  // open already
  const TemporaryDirectory foreign;
  std::ofstream(foreign.path() + "/letter.txt") << "dear reader";
  options.path = foreign.path();
  EXPECT_EQ(open(options).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(foreign.Files().size(), 1);
  options.path = foreign.path() + "/letter.txt";
  EXPECT_EQ(open(options).code(), absl::StatusCode::kPermissionDenied);
  options.path = "/proc/nothing/here";
  EXPECT_EQ(open(options).code(), absl::StatusCode::kPermissionDenied);
  const TemporaryDirectory empty;
  options.path = empty.path() + "/a/b";
  options.limit_bytes = 1000;
  EXPECT_EQ(open(options).code(), absl::StatusCode::kInvalidArgument);
  options.limit_bytes = int64_t{1} << 20;
  EXPECT_TRUE(open(options).ok());
}

}  // namespace
}  // namespace fourierkv
