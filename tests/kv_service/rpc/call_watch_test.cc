// Who is cancelled for being silent, and who is not; whose calls are asked about. Clients that are
// silent: bad_input_test.cc.

#include "kv_service/rpc/call_watch.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "service_fixture.h"
#include "slow_tier.h"

namespace fourierkv {
namespace {

void Await(const std::function<bool()>& what) {
  for (const absl::Time limit = Soon(); !what();) {
    ASSERT_LT(absl::Now(), limit);
    absl::SleepFor(absl::Milliseconds(1));
  }
}

// Fetches that a CallWatch watches, and that do what a test tells them.
class WatchedService final : public v1::KvCacheService::Service {
 public:
  using Work = std::function<void(CallWatch::Call&)>;
  explicit WatchedService(Work work) : work_(std::move(work)) {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    stub_ = v1::KvCacheService::NewStub(server_->InProcessChannel({}));
  }
  ~WatchedService() override { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

  v1::KvCacheService::Stub& stub() { return *stub_; }
  uint64_t asked() const { return watch_.asked(); }

  grpc::Status GetSegments(grpc::ServerContext* context, const v1::GetSegmentsRequest*,
                           grpc::ServerWriter<v1::GetSegmentsResponse>*) override {
    CallWatch::Call call(&watch_, context, CallWatch::Kind::kStream);
    work_(call);
    return grpc::Status::OK;
  }

 private:
  const Work work_;
  CallWatch watch_{absl::Hours(1)};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::KvCacheService::Stub> stub_;
};

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

// To ask costs as much as to serve a small call, and clients may be slow for as long as they like.
TEST(CallWatchTest, NobodyAsksForCallsThatWaitForTheirTurnOrTheirClients) {
  enum Step { kNone, kHasNotBegun, kWorks, kWaitsForClient, kWorksAgain, kEnds };
  std::atomic<Step> step{kNone};
  std::atomic<Step> reached{kNone};
  WatchedService service([&](CallWatch::Call& call) {
    const auto reach = [&](Step now) {
      Await([&] { return step >= now; });
      if (now == kWorks) call.Begin();
      if (now == kWaitsForClient) call.AwaitClient();
      if (now == kWorksAgain) call.Progress();
      reached = now;
    };
    for (const Step now : {kHasNotBegun, kWorks, kWaitsForClient, kWorksAgain, kEnds}) reach(now);
  });
  const auto proceed = [&](Step to) {
    step = to;
    Await([&] { return reached == to; });
  };
  constexpr absl::Duration kManyLooks = absl::Milliseconds(60);
  std::thread client([&] {
    grpc::ClientContext context;
    v1::GetSegmentsResponse response;
    const auto reader = service.stub().GetSegments(&context, {});
    while (reader->Read(&response)) continue;
    EXPECT_TRUE(reader->Finish().ok());
  });

  proceed(kHasNotBegun);
  absl::SleepFor(kManyLooks);
  EXPECT_EQ(service.asked(), 0);

  proceed(kWorks);
  Await([&] { return service.asked() > 2; });

  proceed(kWaitsForClient);
  absl::SleepFor(kManyLooks);  // for a question that goes on now
  const uint64_t asked = service.asked();
  absl::SleepFor(kManyLooks);
  EXPECT_EQ(service.asked(), asked);

  proceed(kWorksAgain);
  Await([&] { return service.asked() > asked + 2; });
  proceed(kEnds);
  client.join();
}

}  // namespace
}  // namespace fourierkv
