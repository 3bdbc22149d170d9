// How much of a server one tenant gets.

#include "kv_service/rpc/tenant_quotas.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "proto/support/retry_info.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

QuotaTable Parse(const std::string& text) {
  auto table = ParseQuotas(text);
  EXPECT_TRUE(table.ok()) << table.status();
  return table.ok() ? *table : QuotaTable();
}

TEST(ParseQuotasTest, WhatATenantsLacksIsTheDefaults) {
  const QuotaTable table = Parse(R"({
    "default": {"requests_per_second": 10.5, "streams": 4},
    "tenants": {"a": {"streams": 8, "in_flight_bytes": 1e9, "stored_bytes": 5}, "b": {"requests_per_second": 0}}})");
  EXPECT_EQ(table.Of("other").requests_per_second, 10.5);
  EXPECT_EQ(table.Of("other").streams, 4);
  EXPECT_EQ(table.Of("other").in_flight_bytes, 0);
  EXPECT_EQ(table.Of("a").requests_per_second, 10.5);
  EXPECT_EQ(table.Of("a").streams, 8);
  EXPECT_EQ(table.Of("a").in_flight_bytes, 1'000'000'000);
  EXPECT_EQ(table.Of("a").stored_bytes, 5);
  EXPECT_EQ(table.Of("b").requests_per_second, 0);
  EXPECT_EQ(Parse("{}").Of("a"), TenantQuota());
}

TEST(ParseQuotasTest, WhatIsNoQuotaIsRefusedByName) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "JSON object"},
      {"[]", "JSON object"},
      {"{", "JSON object"},
      {R"({"defaults": {}})", "'defaults' is unknown"},
      {R"({"default": 3})", "default is not an object"},
      {R"({"tenants": []})", "tenants is not an object"},
      {R"({"tenants": {"a": null}})", "tenants.a is not an object"},
      {R"({"default": {"stream": 3}})", "default.stream is unknown"},
      {R"({"tenants": {"a": {"streams": -1}}})", "tenants.a.streams is not a number from 0"},
      {R"({"default": {"streams": 1.5}})", "default.streams is not whole"},
      {R"({"default": {"streams": "3"}})", "default.streams is not a number"},
      {R"({"default": {"burst": 1e16}})", "default.burst is not a number"},
      {R"({"default": {"burst": null}})", "default.burst is not a number"}};
  for (const auto& [text, why] : cases) {
    const auto table = ParseQuotas(text);
    ASSERT_EQ(table.status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(table.status().message()), HasSubstr(why)) << text;
  }
}

TEST(TenantQuotasTest, ARateAllowsABurstAndThenItsPace) {
  TenantQuotas quotas(Parse(R"({"default": {"requests_per_second": 4, "burst": 3}})"));
  absl::Time now = absl::FromUnixSeconds(1'000'000);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(quotas.TakeRequest("a", now).ok()) << i;
  const absl::Status refused = quotas.TakeRequest("a", now);
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(refused), absl::Milliseconds(250)) << "when there is room for one";
  EXPECT_TRUE(quotas.TakeRequest("b", now).ok()) << "others are not kept waiting";
  now += *RetryAfter(refused);
  EXPECT_TRUE(quotas.TakeRequest("a", now).ok()) << "the advice is right";
  EXPECT_FALSE(quotas.TakeRequest("a", now).ok());
  now += absl::Hours(1);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(quotas.TakeRequest("a", now).ok()) << i;
  EXPECT_FALSE(quotas.TakeRequest("a", now).ok()) << "a silence saves up no more than a burst";
  now -= absl::Hours(2);
  EXPECT_FALSE(quotas.TakeRequest("a", now).ok()) << "nor does a clock that goes back";
}

TEST(TenantQuotasTest, StreamsAndBytesAreGivenBack) {
  TenantQuotas quotas(Parse(R"({"default": {"streams": 2, "in_flight_bytes": 100}})"));
  auto first = quotas.TakeStream("a");
  auto second = quotas.TakeStream("a");
  ASSERT_TRUE(first.ok() && second.ok());
  const absl::Status refused = quotas.TakeStream("a").status();
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(refused).has_value());
  EXPECT_TRUE(quotas.TakeStream("b").ok());
  TenantQuotas::Share moved = *std::move(first);
  EXPECT_FALSE(quotas.TakeStream("a").ok());
  moved.GiveBack();
  moved.GiveBack();
  EXPECT_TRUE(quotas.TakeStream("a").ok());

  auto most = quotas.TakeInFlight("a", 60);
  ASSERT_TRUE(most.ok());
  EXPECT_EQ(quotas.TakeInFlight("a", 41).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(quotas.TakeInFlight("a", 40).ok());
  *most = TenantQuotas::Share();
  EXPECT_TRUE(quotas.TakeInFlight("a", 100).ok());
  const absl::Status never = quotas.TakeInFlight("a", 101).status();
  EXPECT_EQ(never.code(), StatusCode::kInvalidArgument) << "waiting would not help";
}

TEST(TenantQuotasTest, WithoutLimitsNothingIsRefused) {
  TenantQuotas quotas;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(quotas.TakeRequest("a", absl::UnixEpoch()).ok());
    EXPECT_TRUE(quotas.TakeStream("a").ok());
    EXPECT_TRUE(quotas.TakeInFlight("a", int64_t{1} << 60).ok());
  }
}

TEST(TenantQuotasTest, ManyTenantsAreForgottenButNotWhatTheyHold) {
  TenantQuotas quotas(Parse(R"({"default": {"streams": 1, "requests_per_second": 1}})"));
  const auto held = quotas.TakeStream("holder");
  ASSERT_TRUE(held.ok());
  for (int i = 0; i < 20'000; ++i) {
    EXPECT_TRUE(quotas.TakeRequest("t" + std::to_string(i), absl::UnixEpoch()).ok());
  }
  EXPECT_FALSE(quotas.TakeStream("holder").ok());
}

}  // namespace
}  // namespace fourierkv
