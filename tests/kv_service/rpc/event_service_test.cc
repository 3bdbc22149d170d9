// Events over real gRPC: followers that come late, are cut off, or outlive the server.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "clients/cpp/channel.h"
#include "clients/cpp/event_follower.h"
#include "service_fixture.h"

namespace fourierkv {
namespace {

std::shared_ptr<grpc::Channel> ChannelTo(const TestService& service) {
  auto channel = ConnectChannel(service.address(), absl::Seconds(10));
  if (!channel.ok()) std::abort();
  return *channel;
}

FollowOptions Fast() {
  FollowOptions options;
  options.heartbeat = absl::Milliseconds(200);
  options.retry = absl::Milliseconds(20);
  return options;
}

// Whether the mirror has what the service lists now.
bool Same(TestService& service, const EventMirror& mirror) {
  if (!mirror.exact() || mirror.sequence() != service.core().events.latest()) return false;
  size_t held = 0;
  for (const SegmentSummary& row : service.core().store.List()) {
    if (row.bytes() == 0) continue;
    ++held;
    const auto it = mirror.segments().find({row.key.ToString(), v1::STORAGE_TIER_MEMORY});
    if (it == mirror.segments().end()) return false;
    const v1::SegmentEvent& event = it->second;
    int64_t bytes = 0;
    for (const v1::HeldFormSize& form : event.forms()) bytes += form.bytes();
    if (bytes != row.bytes() || event.parent_key() != row.parent.ToString() ||
        event.namespace_key() != row.context->root.ToString() || event.index() != row.index ||
        event.tokens() != row.tokens) {
      return false;
    }
  }
  return mirror.segments().size() == held;
}

bool Catches(TestService& service, const EventFollower& follower) {
  return follower.WaitUntil([&](const EventMirror& m) { return Same(service, m); }, Soon());
}

class EventServiceTest : public testing::Test {
 protected:
  void Put(TestService& service, const Sequence& sequence) {
    const auto header = MakePutHeader(SmallWireNamespace(false), sequence);
    ASSERT_TRUE(PutSequence(service.client(), header, sequence).ok());
  }
  // The status that a subscription ends with.
  static absl::StatusCode CodeOf(TestService& service, const v1::SubscribeRequest& request) {
    const auto stub = v1::EventService::NewStub(ChannelTo(service));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    const auto reader = stub->Subscribe(&context, request);
    v1::SubscribeResponse message;
    if (reader->Read(&message)) {
      context.TryCancel();
      reader->Finish();
      return absl::StatusCode::kOk;
    }
    return static_cast<absl::StatusCode>(reader->Finish().error_code());
  }
  const uint32_t seed_ = std::random_device{}();
};

TEST_F(EventServiceTest, AFollowerThatComesLateGetsASnapshotAndThenEverything) {
  TestService service;
  Put(service, Sequence(seed_, 3 * kS + 9));
  EventFollower follower(ChannelTo(service), Fast());
  EXPECT_TRUE(Catches(service, follower));
  const Sequence second(seed_ + 1, 2 * kS);
  Put(service, second);
  EXPECT_TRUE(Catches(service, follower));
  EXPECT_EQ(follower.state().segments, 6);
  service.core().store.Evict(1);
  const auto keys = KeysOf(SmallWireNamespace(false), second);
  ASSERT_TRUE(service.client().Delete({*Digest::FromRaw(keys[0], "")}, Soon()).ok());
  EXPECT_TRUE(Catches(service, follower));
  const EventFollower::State state = follower.state();
  EXPECT_LE(state.segments, 4);
  EXPECT_EQ(state.snapshots, 1);
  EXPECT_EQ(state.gaps, 0);
  EXPECT_EQ(state.subscriptions, 1);
}

TEST_F(EventServiceTest, AServerThatRestartsIsNoticedByItsEpoch) {
  TestService service({}, absl::StrCat("unix:", testing::TempDir(), "/events-", getpid(), ".sock"));
  Put(service, Sequence(seed_, 2 * kS));
  EventFollower follower(ChannelTo(service), Fast());
  ASSERT_TRUE(Catches(service, follower));
  const uint64_t epoch = follower.state().epoch;
  service.Restart();
  // Channels share a connection, which the follower's may have found closed: then it is tried again
  // a little later.
  const Sequence sequence(seed_ + 1, kS);
  const auto header = MakePutHeader(SmallWireNamespace(false), sequence);
  const absl::Time deadline = Soon();
  auto put = PutSequence(service.client(), header, sequence);
  while (absl::IsUnavailable(put.status()) && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(10));
    put = PutSequence(service.client(), header, sequence);
  }
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_TRUE(Catches(service, follower));
  const EventFollower::State state = follower.state();
  EXPECT_NE(state.epoch, epoch);
  EXPECT_EQ(state.segments, 1);
  EXPECT_EQ(state.gaps, 0);
  EXPECT_GE(state.snapshots, 2);
}

TEST_F(EventServiceTest, AFollowerGoesOnWhereItWasIfTheLogReachesBack) {
  ServiceLimits limits;
  limits.event_log = 8;
  TestService service(limits);
  Put(service, Sequence(seed_, kS));
  EventMirror mirror;
  const auto stub = v1::EventService::NewStub(ChannelTo(service));
  // Reads until the mirror is up to date.
  const auto follow = [&] {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    const auto reader = stub->Subscribe(&context, mirror.Resume());
    v1::SubscribeResponse message;
    while (!Same(service, mirror) && reader->Read(&message)) {
      ASSERT_TRUE(mirror.Apply(message).ok());
    }
    context.TryCancel();
    reader->Finish();
    ASSERT_TRUE(Same(service, mirror));
  };
  follow();
  EXPECT_EQ(mirror.snapshots(), 1);
  Put(service, Sequence(seed_ + 1, 4 * kS));
  follow();
  EXPECT_EQ(mirror.snapshots(), 1);  // replayed
  Put(service, Sequence(seed_ + 2, 9 * kS));
  follow();
  EXPECT_EQ(mirror.snapshots(), 2);  // too far back
}

TEST_F(EventServiceTest, HeartbeatsProveThatNothingHappened) {
  TestService service;
  EventFollower follower(ChannelTo(service), Fast());
  ASSERT_TRUE(Catches(service, follower));
  const absl::Time heard = follower.state().heard;
  while (follower.state().heard == heard) std::this_thread::yield();
  EXPECT_TRUE(follower.state().exact);
  EXPECT_EQ(follower.state().sequence, 0);
  EXPECT_EQ(follower.state().gaps, 0);
}

TEST_F(EventServiceTest, OnlyTheNamespacesAskedForAreTold) {
  TestService service;
  auto other_ns = SmallWireNamespace(false);
  other_ns.set_tenant_salt("other");
  const Sequence mine(seed_, 2 * kS);
  Put(service, mine);
  const Sequence other(seed_ + 1, 3 * kS);
  ASSERT_TRUE(PutSequence(service.client(), MakePutHeader(other_ns, other), other).ok());
  FollowOptions options = Fast();
  const std::string mine_key = KeysOf(SmallWireNamespace(false), mine)[0];
  const auto row = service.core().store.Describe(*Digest::FromRaw(mine_key, ""));
  options.namespace_keys = {row->context->root.ToString()};
  EventFollower follower(ChannelTo(service), options);
  ASSERT_TRUE(follower.WaitUntil(
      [&](const EventMirror& m) {
        return m.exact() && m.sequence() == service.core().events.latest();
      },
      Soon()));
  EXPECT_EQ(follower.state().segments, 2);
  EXPECT_TRUE(follower.mirror().segments().contains({mine_key, v1::STORAGE_TIER_MEMORY}));
}

TEST_F(EventServiceTest, ADrainDoesNotWaitForFollowers) {
  TestService service;
  EventFollower follower(ChannelTo(service), Fast());
  ASSERT_TRUE(Catches(service, follower));
  service.core().events.ShutDown();
  EXPECT_EQ(CodeOf(service, {}), absl::StatusCode::kUnavailable);
}

TEST_F(EventServiceTest, BadRequestsAndTooManyFollowersAreRefused) {
  ServiceLimits limits;
  limits.max_followers = 1;
  TestService service(limits);
  v1::SubscribeRequest request;
  request.add_namespace_keys("short");
  EXPECT_EQ(CodeOf(service, request), absl::StatusCode::kInvalidArgument);
  request.Clear();
  request.mutable_heartbeat()->set_seconds(61);
  EXPECT_EQ(CodeOf(service, request), absl::StatusCode::kInvalidArgument);
  request.mutable_heartbeat()->set_seconds(-1);
  EXPECT_EQ(CodeOf(service, request), absl::StatusCode::kInvalidArgument);
  EventFollower follower(ChannelTo(service), Fast());
  ASSERT_TRUE(Catches(service, follower));
  EXPECT_EQ(CodeOf(service, {}), absl::StatusCode::kResourceExhausted);
}

TEST_F(EventServiceTest, PinsKeepSegmentsUntilTheyAreReleased) {
  ServiceLimits limits;
  limits.max_pin = absl::Minutes(1);
  TestService service(limits);
  const Sequence sequence(seed_, 2 * kS);
  Put(service, sequence);
  std::vector<Digest> keys;
  for (const std::string& key : KeysOf(SmallWireNamespace(false), sequence)) {
    keys.push_back(*Digest::FromRaw(key, ""));
  }
  auto pin = service.client().Pin(keys, absl::Minutes(1), Soon());
  ASSERT_TRUE(pin.ok()) << pin.status();
  EXPECT_EQ(service.core().store.Evict(1 << 30), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(service.client().Delete(keys, Soon()).status()));
  ASSERT_TRUE(service.client().Release(pin->lease_id(), Soon()).ok());
  EXPECT_TRUE(service.client().Delete(keys, Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(service.client().Pin(keys, absl::Seconds(1), Soon()).status()));
  const auto code = [&](std::vector<Digest> some, absl::Duration ttl) {
    return service.client().Pin(some, ttl, Soon()).status().code();
  };
  EXPECT_EQ(code(keys, absl::ZeroDuration()), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(keys, absl::Seconds(61)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({}, absl::Seconds(1)), absl::StatusCode::kInvalidArgument);
}

TEST_F(EventServiceTest, TheLongestLeaseIsAsConfigured) {
  ServiceLimits limits;
  limits.max_lease = absl::Seconds(30);
  TestService service(limits);
  v1::MatchPrefixRequest request;
  *request.mutable_namespace_() = SmallWireNamespace(false);
  request.add_token_ids(1);
  request.mutable_lease_ttl()->set_seconds(30);
  EXPECT_TRUE(service.client().MatchPrefix(request, Soon()).ok());
  request.mutable_lease_ttl()->set_seconds(31);
  EXPECT_TRUE(absl::IsInvalidArgument(service.client().MatchPrefix(request, Soon()).status()));
}

TEST_F(EventServiceTest, MissesAreExplainedOverTheWire) {
  TestService service;
  const Sequence sequence(seed_, 2 * kS + 5);
  Put(service, sequence);
  service.core().store.Evict(1);  // the tail
  v1::ExplainMissRequest request;
  *request.mutable_namespace_() = SmallWireNamespace(false);
  request.mutable_token_ids()->Assign(sequence.tokens().begin(), sequence.tokens().end());
  auto answer = service.client().ExplainMiss(request, Soon());
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_EQ(answer->segments_size(), 3);
  EXPECT_GT(answer->segments(1).forms_size(), 0);
  EXPECT_EQ(answer->segments(2).forms_size(), 0);
  EXPECT_EQ(answer->segments(2).removal_reason(), v1::REMOVAL_REASON_EVICTED);
  EXPECT_TRUE(answer->segments(2).has_removed_ago());
  request.mutable_namespace_()->set_lora_id("adapter");
  answer = service.client().ExplainMiss(request, Soon());
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->segments(0).removal_reason(), v1::REMOVAL_REASON_UNSPECIFIED);
  ASSERT_EQ(answer->elsewhere_size(), 1);
  EXPECT_EQ(answer->elsewhere(0).matched_segments(), 2);
  ASSERT_EQ(answer->elsewhere(0).differences_size(), 1);
  EXPECT_EQ(answer->elsewhere(0).differences(0).field(), "lora_id");
  request.clear_token_ids();
  EXPECT_TRUE(absl::IsInvalidArgument(service.client().ExplainMiss(request, Soon()).status()));
}

TEST(EventMirrorTest, MessagesThatDoNotFollowAreGaps) {
  const auto message = [](uint64_t after, uint64_t through) {
    v1::SubscribeResponse m;
    m.set_epoch(7);
    m.set_after_sequence(after);
    m.set_through_sequence(through);
    return m;
  };
  v1::SubscribeResponse snapshot = message(5, 5);
  snapshot.set_snapshot(true);
  snapshot.set_snapshot_complete(true);
  snapshot.set_snapshot_exact_at(6);
  snapshot.add_events()->set_kind(v1::SEGMENT_EVENT_KIND_CLEARED);
  EventMirror mirror;
  EXPECT_FALSE(mirror.Apply(message(0, 1)).ok());  // before any snapshot
  ASSERT_TRUE(mirror.Apply(snapshot).ok());
  EXPECT_FALSE(mirror.exact());
  ASSERT_TRUE(mirror.Apply(message(5, 6)).ok());
  EXPECT_TRUE(mirror.exact());
  EXPECT_EQ(mirror.Resume().from_sequence(), 6);
  ASSERT_TRUE(mirror.Apply(message(6, 6)).ok());  // a heartbeat
  const auto refused = [&](const v1::SubscribeResponse& m) {
    EventMirror copy = mirror;
    const bool refused = absl::IsDataLoss(copy.Apply(m));
    EXPECT_EQ(copy.exact(), !refused);
    EXPECT_EQ(copy.Resume().epoch() == 0, refused);
    if (refused) {
      EXPECT_TRUE(copy.Apply(snapshot).ok());  // and a snapshot heals it
    }
    return refused;
  };
  EXPECT_TRUE(refused(message(7, 8)));
  EXPECT_TRUE(refused(message(5, 7)));
  EXPECT_TRUE(refused(message(6, 5)));
  v1::SubscribeResponse other = message(6, 7);
  other.set_epoch(8);
  EXPECT_TRUE(refused(other));
  v1::SubscribeResponse middle = message(6, 6);
  middle.set_snapshot(true);
  EXPECT_TRUE(refused(middle));
  v1::SubscribeResponse bad = message(6, 7);
  bad.add_events()->set_kind(v1::SEGMENT_EVENT_KIND_STORED);
  EXPECT_TRUE(refused(bad));
  bad.mutable_events(0)->set_block_key(std::string(32, 'k'));
  bad.mutable_events(0)->set_kind(v1::SEGMENT_EVENT_KIND_CLEARED);
  EXPECT_TRUE(refused(bad));
  bad.mutable_events(0)->set_kind(static_cast<v1::SegmentEventKind>(77));
  EXPECT_TRUE(refused(bad));
  EXPECT_FALSE(refused(message(6, 9)));
}

}  // namespace
}  // namespace fourierkv
