// What a tenant may take of a server that runs, and what calls leave behind that are given up.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "proto/support/call_identity.h"
#include "proto/support/retry_info.h"
#include "tests/kv_service/rpc/security_fixture.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

TEST(QuotaTest, ATenantThatAsksTooOftenIsToldWhenToComeBack) {
  const TestSigner signer(TokenAlgorithm::kEs256, "k");
  const CredentialFolder files;
  const SecureServer server({"--auth-keys", files.Write("keys", MakeJwks({signer.Jwk()})),
                             "--auth-audience", kTestAudience, "--quotas",
                             files.Write("quotas", R"({"tenants": {"a": {
                                 "requests_per_second": 0.01, "burst": 2}}})")});
  const auto call = [&](const std::string& tenant) {
    ChannelOptions options;
    options.token_file = files.Write("token_" + tenant, signer.Sign(ValidClaims(tenant, {"read"})));
    return ReadCall(server.address(), options);
  };
  EXPECT_TRUE(call("a").ok());
  EXPECT_TRUE(call("a").ok());
  const absl::Status refused = call("a");
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted) << refused;
  ASSERT_TRUE(RetryAfter(refused).has_value());
  EXPECT_GT(*RetryAfter(refused), absl::Seconds(10));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(call("b").ok()) << "who has no limit";
}

TEST(QuotaTest, AWrongFileOfQuotasIsRefused) {
  const CredentialFolder files;
  const Ended ended =
      RunProgram("fourierkv-server", {"--listen", "127.0.0.1:0", "--metrics", "", "--quotas",
                                      files.Write("quotas", R"({"default": {"stream": 1}})")});
  EXPECT_EQ(ended.status, 1);
  EXPECT_THAT(ended.err, HasSubstr("default.stream is unknown"));
}

QuotaTable Quotas(const std::string& text) {
  auto table = ParseQuotas(text);
  if (!table.ok()) std::abort();
  return *table;
}

TEST(QuotaTest, StreamsAndTheirBytesAreBounded) {
  TestService service;
  service.core().quotas = std::make_unique<TenantQuotas>(Quotas(R"({"default": {"streams": 2}})"));
  const v1::CacheNamespace ns = SmallWireNamespace(false);
  auto first = service.client().Put(MakePutHeader(ns, Sequence(1, kS)), Soon());
  auto second = service.client().Put(MakePutHeader(ns, Sequence(2, kS)), Soon());
  ASSERT_TRUE(first.ok() && second.ok());
  const auto third = service.client().Put(MakePutHeader(ns, Sequence(3, kS)), Soon());
  EXPECT_EQ(third.status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(third.status()).has_value());
  first->reset();
  EXPECT_TRUE(Eventually(
      [&] { return service.client().Put(MakePutHeader(ns, Sequence(3, kS)), Soon()).ok(); }));

  TestService small;
  small.core().quotas =
      std::make_unique<TenantQuotas>(Quotas(R"({"default": {"in_flight_bytes": 1000}})"));
  EXPECT_EQ(small.client().Put(MakePutHeader(ns, Sequence(4, kS)), Soon()).status().code(),
            StatusCode::kInvalidArgument)
      << "more than it may ever have";
}

TEST(QuotaTest, StoredBytesAreBoundedAndGivenBack) {
  TestService service;
  const v1::CacheNamespace ns = SmallWireNamespace(false);
  const Sequence first(1, 2 * kS);
  ASSERT_TRUE(PutSequence(service.client(), MakePutHeader(ns, first), first).ok());
  const int64_t bytes = service.core().store.TenantBytes("");
  ASSERT_GT(bytes, 0);
  const auto limit = [&](int64_t stored) {
    QuotaTable table;
    table.defaults.stored_bytes = stored;
    service.core().quotas = std::make_unique<TenantQuotas>(table);
  };
  const Sequence second(2, 2 * kS);
  const auto put = [&](const Sequence& sequence) {
    return PutSequence(service.client(), MakePutHeader(ns, sequence), sequence).status();
  };
  const auto expect_refused = [&] {
    const uint64_t used = service.UsedBytes();
    const absl::Status refused = put(second);
    EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("stored_bytes"));
    EXPECT_EQ(service.UsedBytes(), used);
    EXPECT_EQ(service.core().store.TenantBytes(""), bytes);
  };
  for (const int64_t too_little : {bytes, 2 * bytes - 1}) {
    limit(too_little);
    expect_refused();
    // Before any payload comes: its size is known.
    const auto begun = service.client().Put(MakePutHeader(ns, second), Soon());
    EXPECT_EQ(begun.status().code(), StatusCode::kResourceExhausted) << begun.status();
  }
  // What running puts will store counts.
  limit(2 * bytes);
  {
    const Sequence third(3, kS);
    auto running = service.client().Put(MakePutHeader(ns, third), Soon());
    ASSERT_TRUE(running.ok()) << running.status();
    EXPECT_EQ(put(second).code(), StatusCode::kResourceExhausted);
  }
  limit(2 * bytes - 1);
  EXPECT_TRUE(put(first).ok()) << "what is stored needs nothing more";

  std::vector<Digest> keys;
  for (const std::string& key : KeysOf(ns, first)) keys.push_back(*Digest::FromRaw(key, "key"));
  ASSERT_TRUE(service.client().Delete(keys, Soon()).ok());
  EXPECT_EQ(service.core().store.TenantBytes(""), 0);
  EXPECT_TRUE(put(second).ok());
  // Eviction gives back, too.
  EXPECT_EQ(put(first).code(), StatusCode::kResourceExhausted);
  while (service.core().store.Evict(int64_t{1} << 30) > 0) continue;
  EXPECT_EQ(service.core().store.TenantBytes(""), 0);
  EXPECT_TRUE(put(first).ok());
  // Others are not touched by it.
  QuotaTable table;
  table.tenants["somebody"].stored_bytes = 1;
  service.core().quotas = std::make_unique<TenantQuotas>(table);
  EXPECT_TRUE(put(second).ok());
}

TEST(QuotaTest, EveryRefusalForWantOfRoomSaysWhenToComeBack) {
  ServiceLimits limits;
  limits.max_puts = 1;
  TestService service(limits);
  const v1::CacheNamespace ns = SmallWireNamespace(false);
  const auto first = service.client().Put(MakePutHeader(ns, Sequence(1, kS)), Soon());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = service.client().Put(MakePutHeader(ns, Sequence(2, kS)), Soon());
  EXPECT_EQ(second.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(second.status()), kDefaultRetryDelay);
}

TEST(CancelTest, CallsThatAreGivenUpLeaveNothingBehind) {
  TestService service;
  v1::CacheNamespace ns = SmallWireNamespace(true);
  ASSERT_TRUE(service.client().PutProfile(SmallProfile(), Soon()).ok());
  const Sequence stored(1, 8 * kS);
  ASSERT_TRUE(PutSequence(service.client(), MakePutHeader(ns, stored), stored).ok());
  const auto keys = KeysOf(ns, stored);
  const uint64_t used = service.UsedBytes();
  for (int i = 0; i < 200; ++i) {
    grpc::ClientContext context;
    // Some reach their deadline, at whatever moment that is; others are cancelled.
    if (i % 2 == 0) {
      context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Microseconds(50 * (i % 40))));
    }
    if (i % 4 < 2) {
      auto stream = service.raw().GetSegments(
          &context, MakeGet(keys, {v1::SEGMENT_FORM_DENSE, v1::SEGMENT_FORM_EXACT}));
      v1::GetSegmentsResponse response;
      if (i % 8 < 4) stream->Read(&response);
      context.TryCancel();
      stream->Finish();
    } else {
      auto stream = service.raw().PutSegments(&context);
      v1::PutSegmentsRequest request;
      *request.mutable_header() = MakePutHeader(ns, Sequence(1000 + i, 2 * kS));
      stream->Write(request);
      v1::PutSegmentsResponse response;
      if (i % 8 < 4) stream->Read(&response);
      context.TryCancel();
      stream->Finish();
    }
  }
  EXPECT_TRUE(Eventually([&] {
    return service.Stats().open_puts() == 0 && service.core().scratch->used() == 0 &&
           service.UsedBytes() == used;
  })) << service.UsedBytes()
      << " bytes are used, " << used << " were";
  EXPECT_EQ(service.Stats().leases(), 0);
  const auto fetched =
      Fetch(service.client(), MakeGet(keys, {v1::SEGMENT_FORM_COMPACT, v1::SEGMENT_FORM_EXACT}));
  EXPECT_TRUE(fetched.ok()) << fetched.status();
}

TEST(CallLogTest, CallsAreLoggedWithTheirIds) {
  SecureServer server({"--slow-request-ms", "1", "--log-level", "debug"});
  auto stub = v1::KvCacheService::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  const std::string trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "order-66");
  context.AddMetadata("traceparent", trace);
  v1::MatchPrefixResponse match;
  EXPECT_FALSE(stub->MatchPrefix(&context, v1::MatchPrefixRequest(), &match).ok());
  EXPECT_TRUE(server.process().WaitForError("request_id=order-66 traceparent=" + trace));
  EXPECT_THAT(server.process().err(), HasSubstr("rpc.failed"));

  // The client library carries on the ids of the call that its thread works for.
  {
    const CallScope scope({.request_id = "order-67", .traceparent = trace});
    EXPECT_TRUE(ReadCall(server.address(), {}).ok());
  }
  EXPECT_TRUE(server.process().WaitForError("request_id=order-67 traceparent=" + trace));

  grpc::ClientContext unnamed;
  v1::ExistsResponse exists;
  EXPECT_TRUE(stub->Exists(&unnamed, v1::ExistsRequest(), &exists).ok());
  const auto& answered = unnamed.GetServerInitialMetadata();
  const auto id = answered.find("x-request-id");
  ASSERT_NE(id, answered.end());
  EXPECT_TRUE(server.process().WaitForError("request_id=" +
                                            std::string(id->second.data(), id->second.size())));

  grpc::ClientContext slow;
  slow.AddMetadata("x-request-id", "waits");
  auto put = stub->PutSegments(&slow);
  absl::SleepFor(absl::Milliseconds(20));
  put->WritesDone();
  put->Finish();
  EXPECT_TRUE(server.process().WaitForError("request_id=waits"));
}

}  // namespace
}  // namespace fourierkv
