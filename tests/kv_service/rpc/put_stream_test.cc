// What a put takes beside what it stores.

#include "kv_service/rpc/put_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "service_fixture.h"

namespace fourierkv {
namespace {

// As it comes, and as a message.
const int64_t kTwoChunks = 2 * kSmall.PartBytes(kS);

TEST(PutStreamTest, WhatIsReceivedIsChargedWhileThePutGoesOn) {
  TestService service;
  ASSERT_TRUE(service.client().PutProfile(SmallProfile(), Soon()).ok());
  const Sequence sequence(1, 3 * kS);
  const v1::PutHeader header = MakePutHeader(SmallWireNamespace(), sequence);
  const MemoryBudget& budget = *service.core().budget;
  auto first = service.client().Put(header, Soon());
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(budget.used(), kTwoChunks);
  auto second = service.client().Put(header, Soon());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(budget.used(), 2 * kTwoChunks);
  first->reset();
  second->reset();
  EXPECT_EQ(service.UsedBytes(), 0);
  ASSERT_TRUE(PutSequence(service.client(), header, sequence).ok());
  const auto stored = service.UsedBytes();
  auto again = service.client().Put(header, Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(budget.used(), stored) << "what needs nothing receives nothing";
}

TEST(PutStreamTest, WithoutRoomToReceiveItIsRefused) {
  ServiceLimits limits;
  limits.memory_bytes = kTwoChunks - 1;
  TestService service(limits);
  ASSERT_TRUE(service.client().PutProfile(SmallProfile(), Soon()).ok());
  const Sequence sequence(1, kS);
  const auto put = service.client().Put(MakePutHeader(SmallWireNamespace(), sequence), Soon());
  EXPECT_EQ(put.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(put.status().message()), testing::HasSubstr("--memory"));
}

}  // namespace
}  // namespace fourierkv
