#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_fixtures.h"
#include "kv_service/core/segment_store.h"

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

TEST_F(LeaseTest, TheirNumberIsBounded) {
  const std::vector<BlockKey> one = {keys_[0]};
  for (int64_t i = 0; i < kMaxLeases; ++i) {
    ASSERT_TRUE(f_.store.AcquireLease(one, absl::Seconds(1)).ok());
  }
  EXPECT_EQ(f_.store.AcquireLease(one, absl::Seconds(1)).status().code(),
            absl::StatusCode::kResourceExhausted);
  f_.now += absl::Seconds(1);
  EXPECT_TRUE(f_.store.AcquireLease(one, absl::Seconds(1)).ok());
}

TEST_F(LeaseTest, TheKeysOfAllLeasesTogetherAreBounded) {
  const std::vector<BlockKey> many(kMaxLeaseKeys, keys_[0]);
  for (int64_t i = 0; i < kMaxLeasedKeys / kMaxLeaseKeys; ++i) {
    ASSERT_TRUE(f_.store.AcquireLease(many, absl::Seconds(1)).ok());
  }
  const auto refused = f_.store.AcquireLease(std::span(keys_).first(1), absl::Seconds(1));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  f_.now += absl::Seconds(1);
  EXPECT_TRUE(f_.store.AcquireLease(keys_, absl::Seconds(1)).ok());
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
