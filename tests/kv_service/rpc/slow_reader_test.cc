// Clients that fetch and do not read: what waits for them is within the scratch memory.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "proto/support/grpc_status.h"
#include "service_fixture.h"

namespace fourierkv {
namespace {

// Far more than sockets and windows take, so that the service has to wait for a client.
v1::GetSegmentsRequest PutMuch(KvClient& client) {
  EXPECT_TRUE(client.PutProfile(SmallProfile(), Soon()).ok());
  const v1::CacheNamespace ns = SmallWireNamespace();
  std::vector<std::string> keys;
  for (uint32_t i = 0; i < 8; ++i) {
    const Sequence sequence(i + 1, 128 * kS);
    EXPECT_TRUE(PutSequence(client, MakePutHeader(ns, sequence), sequence).ok());
    for (const std::string& key : KeysOf(ns, sequence)) keys.push_back(key);
  }
  return MakeGet(keys, {v1::SEGMENT_FORM_EXACT});
}

struct UnreadFetch {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GetSegmentsResponse>> reader;
};

TEST(SlowReaderTest, MoreCallsThanAllowedAreToldWhenToComeAgain) {
  ServiceLimits limits;
  limits.max_calls = 1;
  TestService service(limits);
  const v1::GetSegmentsRequest much = PutMuch(service.client());
  UnreadFetch fetch;
  fetch.reader = service.raw().GetSegments(&fetch.context, much);
  v1::GetSegmentsResponse plan;
  ASSERT_TRUE(fetch.reader->Read(&plan));
  const absl::Status refused = Fetch(service.client(), much).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("--max-calls"));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  fetch.context.TryCancel();
  fetch.reader->Finish();
  for (const absl::Time limit = Soon(); service.core().gate.stats().calls > 0;) {
    ASSERT_LT(absl::Now(), limit);
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_TRUE(Fetch(service.client(), much).ok());
}

TEST(SlowReaderTest, WhatWaitsForClientsIsBoundedByScratchMemory) {
  ServiceLimits limits;
  limits.scratch_bytes = int64_t{2} << 20;
  TestService service(limits);
  const v1::GetSegmentsRequest much = PutMuch(service.client());
  std::vector<std::unique_ptr<UnreadFetch>> unread;
  absl::Status refused;
  while (refused.ok() && unread.size() < 100) {
    auto fetch = std::make_unique<UnreadFetch>();
    fetch->reader = service.raw().GetSegments(&fetch->context, much);
    v1::GetSegmentsResponse plan;
    if (fetch->reader->Read(&plan)) {
      unread.push_back(std::move(fetch));
    } else {
      refused = FromGrpc(fetch->reader->Finish());
    }
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_GE(unread.size(), 2);
  EXPECT_LE(service.core().scratch->used(), limits.scratch_bytes);
  // A small fetch takes little.
  v1::GetSegmentsRequest small = much;
  small.mutable_segments()->DeleteSubrange(1, small.segments_size() - 1);
  EXPECT_TRUE(Fetch(service.client(), small).ok());
  for (const auto& fetch : unread) {
    fetch->context.TryCancel();
    fetch->reader->Finish();
  }
  for (const absl::Time limit = Soon();
       service.core().scratch->used() > 0 && absl::Now() < limit;) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(service.core().scratch->used(), 0);
  EXPECT_TRUE(Fetch(service.client(), much).ok());
}

}  // namespace
}  // namespace fourierkv
