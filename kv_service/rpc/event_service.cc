#include "kv_service/rpc/event_service.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/core/event_feed.h"
#include "kv_service/rpc/namespace_convert.h"
#include "kv_service/rpc/removal_convert.h"
#include "kv_service/rpc/tenant_view.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

constexpr int kMaxNamespaces = 1024;
constexpr absl::Duration kDefaultHeartbeat = absl::Seconds(5);
// How soon a call notices that its follower is gone.
constexpr absl::Duration kLook = absl::Milliseconds(250);

absl::StatusOr<absl::Duration> Heartbeat(const v1::SubscribeRequest& request) {
  const absl::Duration heartbeat = FromProto(request.heartbeat());
  if (heartbeat == absl::ZeroDuration()) return kDefaultHeartbeat;
  if (heartbeat < absl::Milliseconds(100) || heartbeat > absl::Minutes(1)) {
    return absl::InvalidArgumentError(absl::StrCat("heartbeat is ", absl::FormatDuration(heartbeat),
                                                   "; it must be 0, or from 0.1 to 60 seconds"));
  }
  return heartbeat;
}

v1::StorageTier ToStorageTier(Durability tier) {
  switch (tier) {
    case Durability::kMemory:
      return v1::STORAGE_TIER_MEMORY;
    case Durability::kDisk:
      return v1::STORAGE_TIER_DISK;
    case Durability::kShared:
      return v1::STORAGE_TIER_SHARED;
  }
  return v1::STORAGE_TIER_UNSPECIFIED;
}

void FillEvent(const StoreEvent& from, v1::SegmentEvent& to) {
  to.set_block_key(from.key.ToString());
  to.set_sequence(from.sequence);
  to.set_tier(ToStorageTier(from.tier));
  if (from.kind == StoreEventKind::kRemoved) {
    to.set_kind(v1::SEGMENT_EVENT_KIND_REMOVED);
    to.set_reason(ToProto(from.reason));
    return;
  }
  to.set_kind(v1::SEGMENT_EVENT_KIND_STORED);
  to.set_parent_key(from.parent.ToString());
  to.set_namespace_key(from.context->root.ToString());
  to.set_index(from.index);
  to.set_tokens(from.tokens);
  for (const SegmentForm form : kHeldForms) {
    if (from.bytes[form] == 0) continue;
    v1::HeldFormSize* held = to.add_forms();
    held->set_form(ToProto(form));
    held->set_bytes(from.bytes[form]);
  }
}

void FillResponse(const EventFeed::Message& from, v1::SubscribeResponse& to) {
  to.set_after_sequence(from.after);
  to.set_through_sequence(from.through);
  to.set_snapshot(from.snapshot);
  to.set_snapshot_complete(from.snapshot_complete);
  to.set_snapshot_exact_at(from.snapshot_exact_at);
  if (from.snapshot_begins) to.add_events()->set_kind(v1::SEGMENT_EVENT_KIND_CLEARED);
  for (const StoreEvent& event : from.events) FillEvent(event, *to.add_events());
}

}  // namespace

grpc::Status EventServiceImpl::Subscribe(grpc::ServerContext* context,
                                         const v1::SubscribeRequest* request,
                                         grpc::ServerWriter<v1::SubscribeResponse>* writer) {
  const int most = core_->limits.max_followers;
  absl::Status status;
  if (followers_.fetch_add(1) >= most) {
    status = absl::ResourceExhaustedError(
        absl::StrCat(most, " followers are there, which is the most; retry later"));
  } else {
    CallWatch::Call call(&watch_, context, CallWatch::Kind::kFollower);
    status = Serve(*context, *request, *writer, call);
    if (!call.status().ok()) status = call.status();
  }
  followers_.fetch_sub(1);
  return ToGrpc(status);
}

absl::Status EventServiceImpl::Serve(grpc::ServerContext& context,
                                     const v1::SubscribeRequest& request,
                                     grpc::ServerWriter<v1::SubscribeResponse>& writer,
                                     CallWatch::Call& call) {
  const absl::StatusOr<TenantView> view = TenantView::Of(*core_, context);
  if (!view.ok()) return view.status();
  const absl::StatusOr<absl::Duration> heartbeat = Heartbeat(request);
  if (!heartbeat.ok()) return heartbeat.status();
  const absl::StatusOr<std::vector<BlockKey>> roots =
      ParseKeys(request.namespace_keys(), "namespace_keys", kMaxNamespaces);
  if (!roots.ok()) return roots.status();
  const absl::flat_hash_set<Digest> wanted(roots->begin(), roots->end());
  std::vector<const SegmentTier*> tiers;
  for (const auto& runner : core_->tiers.tiers()) tiers.push_back(&runner->tier());
  EventFeed feed(
      &core_->events, &core_->store, request.epoch(), request.from_sequence(),
      [&](const NamespaceContext& context) {
        return !view->IsForeign(context) && (wanted.empty() || wanted.contains(context.root));
      },
      std::move(tiers));
  EventFeed::Message message;
  v1::SubscribeResponse response;
  for (absl::Time last = absl::Now(); !context.IsCancelled();) {
    const absl::Time due = last + *heartbeat;
    if (!feed.Next(std::min(due, absl::Now() + kLook), message)) {
      return absl::UnavailableError("the server is about to stop");
    }
    const bool idle = !message.snapshot && message.after == message.through;
    if (idle && absl::Now() < due) continue;
    response.Clear();
    response.set_epoch(core_->events.epoch());
    FillResponse(message, response);
    call.AwaitClient();
    if (!writer.Write(response)) break;
    call.Progress();
    last = absl::Now();
  }
  return absl::CancelledError("the follower is gone");
}

}  // namespace fourierkv
