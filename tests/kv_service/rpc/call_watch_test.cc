// Who is cancelled for being silent, and who is not. Clients that are: bad_input_test.cc.

#include "kv_service/rpc/call_watch.h"

#include <gtest/gtest.h>

#include <memory>

#include "service_fixture.h"
#include "slow_tier.h"

namespace fourierkv {
namespace {

TEST(CallWatchTest, AFetchThatWaitsForATierIsNotTakenForAClientThatFellSilent) {
  ServiceLimits limits;
  limits.stall = absl::Milliseconds(200);
  TestService service(limits);
  const auto tier = std::make_shared<SlowTier>(absl::Hours(1000));
  service.core().tiers.AddTier(tier);
  ASSERT_TRUE(service.client().PutProfile(SmallProfile(), Soon()).ok());
  const v1::CacheNamespace ns = SmallWireNamespace();
  const Sequence sequence(1, kS);
  ASSERT_TRUE(PutSequence(service.client(), MakePutHeader(ns, sequence), sequence).ok());
  ASSERT_TRUE(service.core().tiers.Drain(Soon()));
  tier->Freeze();  // it answers nobody in time any more
  service.core().store.Evict(int64_t{1} << 40);
  v1::GetSegmentsRequest get = MakeGet(KeysOf(ns, sequence), {v1::SEGMENT_FORM_EXACT});
  get.mutable_tier_wait()->set_seconds(1);
  const auto fetched = Fetch(service.client(), get);
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  ASSERT_EQ(fetched->plan.segments_size(), 1);
  EXPECT_NE(fetched->plan.segments(0).missing_reason(), v1::MISSING_REASON_UNSPECIFIED);
}

}  // namespace
}  // namespace fourierkv
