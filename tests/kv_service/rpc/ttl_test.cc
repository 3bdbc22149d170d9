// Puts that are kept for a time only.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "slow_tier.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class TtlTest : public testing::Test {
 protected:
  absl::StatusOr<v1::PutCommitted> Put(absl::Duration ttl,
                                       v1::Durability durability = v1::DURABILITY_MEMORY) {
    v1::PutHeader header = MakePutHeader(ns_, sequence_);
    header.mutable_ttl()->set_seconds(ttl / absl::Seconds(1));
    header.mutable_ttl()->set_nanos(
        static_cast<int32_t>((ttl % absl::Seconds(1)) / absl::Nanoseconds(1)));
    header.set_durability(durability);
    return PutSequence(service_.client(), header, sequence_);
  }
  bool Exists() {
    return service_.client()
        .Exists({*Digest::FromRaw(KeysOf(ns_, sequence_)[0], "key")}, Soon())
        ->front();
  }

  TestService service_{[] {
    ServiceLimits limits;
    limits.max_ttl = absl::Minutes(10);
    limits.sweep = absl::Milliseconds(20);
    return limits;
  }()};
  std::shared_ptr<SlowTier> tier_ = std::make_shared<SlowTier>(absl::ZeroDuration());
  const v1::CacheNamespace ns_ = SmallWireNamespace(false);
  const Sequence sequence_{1, 2 * kS};
};

TEST_F(TtlTest, HoldsInTiersToo) {
  service_.core().tiers.AddTier(tier_);
  const auto committed = Put(absl::Milliseconds(1500), v1::DURABILITY_DISK);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->durability(), v1::DURABILITY_DISK);
  // Brought back from the tier it has no more time than before.
  while (service_.core().store.Evict(int64_t{1} << 40) > 0) continue;
  Fetch(service_.client(), MakeGet(KeysOf(ns_, sequence_), {v1::SEGMENT_FORM_EXACT})).IgnoreError();
  const absl::Time limit = Soon();
  while (Exists() && absl::Now() < limit) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_FALSE(Exists());
  // For ever, in memory and in the tier.
  ASSERT_TRUE(PutSequence(service_.client(), MakePutHeader(ns_, sequence_), sequence_).ok());
  EXPECT_TRUE(service_.core().tiers.Drain(Soon()));
  while (service_.core().store.Evict(int64_t{1} << 40) > 0) continue;
  EXPECT_TRUE(Exists());
}

TEST_F(TtlTest, GoesFromAServerThatNobodyUses) {
  const int64_t before = service_.core().budget->used();
  ASSERT_TRUE(Put(absl::Milliseconds(50)).ok());
  const absl::Time limit = Soon();
  // The budget is asked, not the store: that would look for what has expired by itself.
  while (service_.core().budget->used() > before && absl::Now() < limit) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(service_.core().budget->used(), before);
}

TEST_F(TtlTest, OutOfBoundsItIsRefusedByName) {
  EXPECT_TRUE(Put(absl::Minutes(10)).ok());
  for (const absl::Duration wrong :
       {absl::ZeroDuration(), -absl::Seconds(1), absl::Minutes(10) + absl::Nanoseconds(1)}) {
    const absl::Status refused = Put(wrong).status();
    EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("ttl")) << wrong;
  }
  v1::PutHeader endless = MakePutHeader(ns_, sequence_);  // more than a duration holds
  endless.mutable_ttl()->set_seconds(std::numeric_limits<int64_t>::max());
  endless.mutable_ttl()->set_nanos(std::numeric_limits<int32_t>::max());
  EXPECT_EQ(PutSequence(service_.client(), endless, sequence_).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fourierkv
