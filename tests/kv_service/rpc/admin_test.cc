// What operators ask of a server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kv_service/rpc/admin_service.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;

class AdminTest : public testing::Test {
 protected:
  AdminTest() {
    if (!PutSequence(service_.client(), MakePutHeader(ns_, sequence_), sequence_).ok()) {
      std::abort();
    }
  }

  TestService service_;
  const v1::CacheNamespace ns_ = SmallWireNamespace(false);
  const Sequence sequence_{1, 3 * kS};
};

TEST_F(AdminTest, TellsWhatItWasBuiltOf) {
  const auto info = service_.client().BuildInfo(Soon());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version(), FOURIERKV_VERSION);
  EXPECT_NE(info->compiler(), "");
  EXPECT_NE(info->architecture(), "");
  EXPECT_NE(info->grpc_version(), "");
}

TEST_F(AdminTest, TellsWhoStoresHowMuch) {
  QuotaTable quotas;
  quotas.defaults.stored_bytes = int64_t{1} << 40;
  service_.core().quotas = std::make_unique<TenantQuotas>(quotas);
  const auto tenants = service_.client().ListTenants(Soon());
  ASSERT_TRUE(tenants.ok()) << tenants.status();
  ASSERT_EQ(tenants->tenants_size(), 1);
  EXPECT_EQ(tenants->tenants(0).tenant(), "");
  EXPECT_EQ(tenants->tenants(0).namespaces(), 1);
  EXPECT_EQ(tenants->tenants(0).stored_bytes(), service_.Stats().exact_bytes());
  EXPECT_EQ(tenants->tenants(0).stored_bytes_limit(), uint64_t{1} << 40);
}

TEST_F(AdminTest, VerifyFindsDamageAndDropsItAlone) {
  auto whole = service_.client().VerifySegments(Soon());
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->segments(), 3);
  EXPECT_EQ(whole->forms(), 3);
  EXPECT_EQ(whole->bytes(), service_.Stats().exact_bytes());
  EXPECT_EQ(whole->damaged_forms(), 0);

  const auto keys = KeysOf(ns_, sequence_);
  const BlockKey last = *Digest::FromRaw(keys.back(), "key");
  {
    const auto stored = service_.core().store.Peek(last);
    ASSERT_TRUE(stored.has_value());
    Damage(stored->forms[SegmentForm::kExact]->blob(1, Part::kV), 200);
  }
  whole = service_.client().VerifySegments(Soon());
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->damaged_forms(), 1);
  const auto fetched = Fetch(service_.client(), MakeGet(keys, {v1::SEGMENT_FORM_EXACT}));
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->plan.segments(1).missing_reason(), v1::MISSING_REASON_UNSPECIFIED);
  EXPECT_EQ(fetched->plan.segments(2).missing_reason(), v1::MISSING_REASON_NOT_STORED);
  EXPECT_EQ(service_.client().VerifySegments(Soon())->segments(), 2);
}

TEST_F(AdminTest, ACheckThatIsNotDoneInTimeSaysSo) {
  EXPECT_EQ(service_.core().reader.CheckMemory(absl::InfinitePast()).status().code(),
            StatusCode::kDeadlineExceeded);
}

TEST_F(AdminTest, AServerThatCannotBeStoppedByACallSaysSo) {
  EXPECT_EQ(service_.client().Drain(Soon()).code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(service_.client().Stats(Soon()).ok());
}

}  // namespace
}  // namespace fourierkv
