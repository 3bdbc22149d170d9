#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "core_fixtures.h"
#include "kv_service/core/segment_store.h"
#include "kv_service/core/tenant_salt.h"

namespace fourierkv {
namespace {

constexpr int64_t kEverything = int64_t{1} << 40;

class LeaseTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(f_.Commit(chain_, true, true).ok());
    keys_ = f_.Keys(chain_);
  }

  std::mt19937 rng_{std::random_device{}()};
  std::vector<StoredSegment> chain_ = MakeChain(SmallContext(), RandomTokens(rng_, 4 * kS));
  std::vector<BlockKey> keys_;
  StoreFixture f_;
};

TEST_F(LeaseTest, WhatIsLeasedAndWhatItStandsOnIsNotEvicted) {
  const auto lease = f_.store.AcquireLease(std::span(keys_).subspan(2, 1), absl::Seconds(10));
  ASSERT_TRUE(lease.ok());
  EXPECT_NE(lease->id, 0);
  EXPECT_EQ(lease->expiry, f_.now + absl::Seconds(10));
  f_.store.Evict(kEverything);
  EXPECT_EQ(f_.store.Match(keys_)->segments.size(), 3);
  // Both forms of the leased one; of what stands before it only the bytes that are needed.
  EXPECT_GT(f_.store.Describe(keys_[2])->forms[SegmentForm::kExact].bytes, 0);
  EXPECT_EQ(f_.store.Describe(keys_[1])->forms[SegmentForm::kExact].bytes, 0);
  EXPECT_EQ(f_.store.Delete(keys_, true).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(LeaseTest, ALeaseEndsByRelease) {
  const auto lease = f_.store.AcquireLease(keys_, absl::Seconds(10));
  ASSERT_TRUE(f_.store.Release(lease->id).ok());
  EXPECT_EQ(f_.store.Release(lease->id).code(), absl::StatusCode::kNotFound);
  f_.store.Evict(kEverything);
  EXPECT_EQ(f_.store.Stats().segments, 0);
  EXPECT_EQ(f_.budget->used(), 0);
}

TEST_F(LeaseTest, ALeaseEndsByItself) {
  const auto lease = f_.store.AcquireLease(keys_, absl::Seconds(10));
  ASSERT_TRUE(lease.ok());
  f_.now += absl::Seconds(10) - absl::Nanoseconds(1);
  f_.store.Evict(kEverything);
  EXPECT_EQ(f_.store.Stats().segments, 4);
  f_.now += absl::Nanoseconds(1);
  f_.store.Evict(kEverything);
  EXPECT_EQ(f_.store.Stats().segments, 0);
  EXPECT_EQ(f_.store.Stats().leases, 0);
  EXPECT_EQ(f_.store.Release(lease->id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(f_.metrics->leases_expired, 1);
}

TEST_F(LeaseTest, LeasesOnTheSameSegmentAreCounted) {
  const auto a = f_.store.AcquireLease(keys_, absl::Seconds(10));
  const auto b = f_.store.AcquireLease(keys_, absl::Seconds(20));
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(a->id, b->id);
  EXPECT_EQ(f_.store.Describe(keys_[0])->holds, 2);
  f_.now += absl::Seconds(15);
  f_.store.Expire();
  EXPECT_EQ(f_.metrics->leases_expired, 1);
  EXPECT_EQ(f_.store.Describe(keys_[0])->holds, 1);
  EXPECT_EQ(f_.store.Stats().leases, 1);
}

TEST_F(LeaseTest, MatchLeasesWhatItMatched) {
  auto asked = keys_;
  asked.push_back(Digest{});
  const auto match = f_.store.Match(asked, std::nullopt, absl::Seconds(1));
  ASSERT_TRUE(match.ok() && match->lease.has_value());
  for (const BlockKey& key : keys_) EXPECT_EQ(f_.store.Describe(key)->holds, 1);
  const auto nothing = f_.store.Match(std::vector{Digest{}}, std::nullopt, absl::Seconds(1));
  EXPECT_FALSE(nothing->lease.has_value());
}

TEST_F(LeaseTest, BadRequestsLeaseNothing) {
  using Code = absl::StatusCode;
  const auto code = [&](std::span<const BlockKey> keys, absl::Duration ttl) {
    return f_.store.AcquireLease(keys, ttl).status().code();
  };
  EXPECT_EQ(code(keys_, absl::ZeroDuration()), Code::kInvalidArgument);
  EXPECT_EQ(code(keys_, -absl::Seconds(1)), Code::kInvalidArgument);
  EXPECT_EQ(code(keys_, absl::InfiniteDuration()), Code::kInvalidArgument);
  EXPECT_EQ(code({}, absl::Seconds(1)), Code::kInvalidArgument);
  EXPECT_EQ(code(std::vector<BlockKey>(kMaxLeaseKeys + 1, keys_[0]), absl::Seconds(1)),
            Code::kInvalidArgument);
  EXPECT_EQ(f_.store.Match(keys_, std::nullopt, kMaxLeaseTtl + absl::Seconds(1)).status().code(),
            Code::kInvalidArgument);
  auto unknown = keys_;
  unknown.push_back(Digest{});
  EXPECT_EQ(code(unknown, absl::Seconds(1)), Code::kNotFound);
  EXPECT_EQ(f_.store.Describe(keys_[0])->holds, 0);
}

// Of tenants with a segment each.
class LeaseShareTest : public LeaseTest {
 protected:
  // Until it is refused.
  int64_t LeaseAll(const std::string& tenant, size_t keys = 1) {
    const BlockKey key = KeyOf(tenant);
    for (int64_t count = 0;; ++count) {
      const absl::Status status =
          f_.store.AcquireLease(std::vector<BlockKey>(keys, key), absl::Seconds(10)).status();
      if (status.ok()) continue;
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      return count;
    }
  }
  BlockKey KeyOf(const std::string& tenant) {
    auto& chain = chains_[tenant];
    if (chain.empty()) {
      chain = MakeChain(SmallContext(true, *MakeTenantSalt(tenant, "")), RandomTokens(rng_, kS));
      EXPECT_TRUE(f_.Commit(chain, true, false).ok());
    }
    return chain.front().key;
  }

  std::map<std::string, std::vector<StoredSegment>> chains_;
};

TEST_F(LeaseShareTest, HoweverManyLeasesATenantHoldsOthersGetSome) {
  EXPECT_EQ(LeaseAll("greedy"), kMaxLeases * 7 / 8);
  EXPECT_EQ(LeaseAll("next"), kMaxLeases / 8 * 7 / 8);
  EXPECT_GT(LeaseAll("modest"), 100);
  EXPECT_EQ(LeaseAll("greedy"), 0);
  // Whoever has as many gets none by a match, either, as where there are none left.
  const auto match = f_.store.Match(std::vector{KeyOf("greedy")}, std::nullopt, absl::Seconds(10));
  EXPECT_EQ(match.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(f_.store.Match(std::vector{KeyOf("greedy")}).ok());
}

TEST_F(LeaseShareTest, HoweverManyKeysATenantLeasesOthersGetSome) {
  EXPECT_EQ(LeaseAll("greedy", kMaxLeaseKeys), kMaxLeasedKeys / kMaxLeaseKeys * 7 / 8);
  EXPECT_GT(LeaseAll("modest", kMaxLeaseKeys / 2), 8);
  EXPECT_EQ(LeaseAll("greedy", kMaxLeaseKeys), 0);
  EXPECT_TRUE(f_.store.AcquireLease(keys_, absl::Seconds(10)).ok());
}

TEST_F(LeaseShareTest, WhatEndsIsGivenBackToItsTenant) {
  const auto released = f_.store.AcquireLease(std::vector{KeyOf("a")}, absl::Seconds(10));
  ASSERT_TRUE(released.ok());
  const int64_t share = LeaseAll("a");
  ASSERT_TRUE(f_.store.Release(released->id).ok());
  EXPECT_EQ(LeaseAll("a"), 1);
  f_.now += absl::Seconds(10);
  EXPECT_EQ(LeaseAll("b"), share + 1) << "those of a have ended";
  f_.now += absl::Seconds(10);
  EXPECT_EQ(LeaseAll("a", 2), share + 1);
  f_.now += absl::Seconds(10);
  f_.store.Evict(kEverything);
  EXPECT_EQ(f_.store.Stats().segments, 0);
}

TEST_F(LeaseTest, APinHoldsUntilItIsDestroyed) {
  {
    auto asked = keys_;
    asked.push_back(Digest{});  // not stored: not held
    SegmentPin pin = f_.store.Pin(asked);
    SegmentPin moved = std::move(pin);
    f_.now += absl::Hours(1000);
    f_.store.Evict(kEverything);
    EXPECT_EQ(f_.store.Stats().segments, 4);
  }
  f_.store.Evict(kEverything);
  EXPECT_EQ(f_.store.Stats().segments, 0);
}

}  // namespace
}  // namespace fourierkv
