#include "kv_service/rpc/kv_cache_service.h"

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/codec/sequence_scope.h"
#include "kv_service/rpc/get_stream.h"
#include "kv_service/rpc/namespace_convert.h"
#include "kv_service/rpc/put_stream.h"
#include "kv_service/rpc/tenant_view.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

constexpr int kMaxKeysPerCall = 65536;
constexpr int64_t kMaxTokensPerMatch = int64_t{1} << 22;

using Kind = CallWatch::Kind;

absl::StatusOr<KeyChain> KeysOf(const TenantView& view, const v1::MatchPrefixRequest& request) {
  if (request.token_ids().empty() == request.block_keys().empty()) {
    return absl::InvalidArgumentError(
        "give either token_ids, with a namespace, or block_keys, and not both");
  }
  if (!request.block_keys().empty()) {
    absl::StatusOr<std::vector<BlockKey>> keys =
        ParseKeys(request.block_keys(), "block_keys", kMaxLeaseKeys);
    if (!keys.ok()) return keys.status();
    const auto foreign = std::find_if(keys->begin(), keys->end(),
                                      [&](const BlockKey& key) { return view.IsForeign(key); });
    keys->erase(foreign, keys->end());
    return KeyChain{*std::move(keys), std::nullopt};
  }
  if (request.token_ids_size() > kMaxTokensPerMatch) {
    return absl::InvalidArgumentError(absl::StrCat("token_ids has ", request.token_ids_size(),
                                                   " tokens; at most ", kMaxTokensPerMatch,
                                                   " are taken"));
  }
  absl::StatusOr<CacheNamespace> ns = FromProto(request.namespace_(), view.tenant());
  if (!ns.ok()) return ns.status();
  const std::span<const uint32_t> tokens(request.token_ids().data(), request.token_ids().size());
  absl::StatusOr<int64_t> capacity =
      ParseSequenceCapacity(request.sequence_capacity(), "sequence_capacity");
  if (!capacity.ok()) return capacity.status();
  if (ns->segment_tokens > 0) {
    if (*capacity == 0) return ChainKeys(*ns, tokens);
    return absl::InvalidArgumentError(
        "sequence_capacity is for a namespace of whole sequences, whose segment_tokens is 0");
  }
  if (auto s = CheckSequenceShape(static_cast<int64_t>(tokens.size()), *capacity); !s.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_ids and sequence_capacity: ", s.message()));
  }
  return KeyChain{{SequenceKey(ns->RootKey(), *capacity, tokens)}, std::nullopt};
}

// Ends what matched before the first segment that is not the caller's: one that was not known to be
// when the keys were looked at. What nobody can have a lease on now is looked at without one: that
// others have no room for leases tells that they store it.
absl::StatusOr<MatchResult> MatchOwn(ServiceCore& core, const TenantView& view, KeyChain& keys,
                                     absl::Duration ttl, const Patience& patience) {
  absl::StatusOr<MatchResult> match = core.tiers.Match(keys.segments, keys.tail, ttl, patience);
  const absl::Status refused = match.status();
  if (absl::IsResourceExhausted(refused)) {
    match = core.tiers.Match(keys.segments, keys.tail, absl::ZeroDuration(), patience);
  }
  if (!match.ok()) return match;
  const auto foreign =
      std::find_if(match->segments.begin(), match->segments.end(),
                   [&](const SegmentSummary& s) { return view.IsForeign(*s.context); });
  if (foreign == match->segments.end()) {
    if (!refused.ok()) return refused;
    return match;
  }
  if (match->lease.has_value()) core.store.Release(match->lease->id).IgnoreError();
  keys.segments.resize(foreign - match->segments.begin());
  return core.tiers.Match(keys.segments, std::nullopt, ttl, patience);
}

// The promise of the tier that a segment was found in.
v1::Durability TierOf(const ServiceCore& core, const SegmentSummary& segment) {
  if (segment.tier == 0) return v1::DURABILITY_MEMORY;
  return ToProto(core.tiers.tiers()[segment.tier - 1]->tier().durability());
}

// How long it takes to bring what matched from where it is; zero if nothing is known.
absl::Duration FetchTime(const ServiceCore& core, std::span<const SegmentSummary> segments) {
  std::vector<double> bytes(core.tiers.tiers().size() + 1);
  for (const SegmentSummary& segment : segments) {
    for (const SegmentForm form : kHeldForms) {
      const int64_t held = segment.forms[form].bytes;
      if (held == 0) continue;
      bytes[0] += static_cast<double>(held);  // all goes to the client
      if (segment.tier > 0) bytes[segment.tier] += static_cast<double>(held);
      break;
    }
  }
  double seconds = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const double rate =
        i == 0 ? core.fetch_bandwidth.bytes_per_second()
               : core.tiers.tiers()[i - 1]->metrics().load_bandwidth.bytes_per_second();
    if (rate > 0) seconds += bytes[i] / rate;
  }
  return absl::Seconds(seconds);
}

absl::Status Match(ServiceCore& core, const TenantView& view, const v1::MatchPrefixRequest& request,
                   const Patience& patience, v1::MatchPrefixResponse& response) {
  absl::StatusOr<KeyChain> keys = KeysOf(view, request);
  if (!keys.ok()) return keys.status();
  const absl::Duration ttl = FromProto(request.lease_ttl());
  const absl::Duration longest = core.live.max_lease.Get();
  if (ttl < absl::ZeroDuration() || ttl > longest) {
    return absl::InvalidArgumentError(absl::StrCat("lease_ttl is ", absl::FormatDuration(ttl),
                                                   "; it must be from 0 to ",
                                                   absl::FormatDuration(longest)));
  }
  absl::StatusOr<MatchResult> match = MatchOwn(core, view, *keys, ttl, patience);
  if (!match.ok()) return match.status();
  if (absl::Status over = patience.Check(); !over.ok()) {
    // Nobody would know of the lease.
    if (match->lease.has_value()) core.store.Release(match->lease->id).IgnoreError();
    return over;
  }
  if (match->tail.has_value()) match->segments.push_back(*match->tail);
  uint64_t tokens = 0;
  uint64_t bytes = 0;
  for (const SegmentSummary& segment : match->segments) {
    v1::MatchedSegment* message = response.add_segments();
    message->set_block_key(segment.key.ToString());
    message->set_index(segment.index);
    message->set_tokens(segment.tokens);
    for (const v1::HeldForm& form : HeldForms(segment)) *message->add_forms() = form;
    message->set_tier(TierOf(core, segment));
    if (message->forms_size() > 0) bytes += message->forms(0).bytes();
    tokens += segment.tokens;
  }
  response.set_matched_tokens(tokens);
  response.set_bytes(bytes);
  if (match->lease.has_value()) {
    response.set_lease_id(view.TranslateLease(match->lease->id));
    *response.mutable_lease_ttl() = ToProto(ttl);
  }
  if (const absl::Duration time = FetchTime(core, match->segments); time > absl::ZeroDuration()) {
    *response.mutable_estimated_fetch_time() = ToProto(time);
  }
  return absl::OkStatus();
}

absl::Status DeleteKeys(ServiceCore& core, const TenantView& view, const v1::DeleteRequest& request,
                        const Patience& patience, v1::DeleteResponse& response) {
  absl::StatusOr<std::vector<BlockKey>> keys =
      ParseKeys(request.block_keys(), "block_keys", kMaxKeysPerCall);
  if (!keys.ok()) return keys.status();
  if (absl::Status s = view.KeepOwn(*keys, patience); !s.ok()) return s;
  absl::StatusOr<DeleteResult> removed = core.tiers.Delete(*keys, patience);
  if (!removed.ok()) return removed.status();
  response.set_removed_segments(removed->segments);
  response.set_freed_bytes(removed->bytes);
  return absl::OkStatus();
}

absl::Status PinKeys(ServiceCore& core, const TenantView& view, const v1::PinRequest& request,
                     const Patience& patience, v1::PinResponse& response) {
  absl::StatusOr<std::vector<BlockKey>> keys =
      ParseKeys(request.block_keys(), "block_keys", kMaxKeysPerCall);
  if (!keys.ok()) return keys.status();
  const absl::Duration ttl = FromProto(request.ttl());
  const absl::Duration longest = core.live.max_pin.Get();
  if (ttl <= absl::ZeroDuration() || ttl > longest) {
    return absl::InvalidArgumentError(absl::StrCat("ttl is ", absl::FormatDuration(ttl),
                                                   "; it must be above 0 and at most ",
                                                   absl::FormatDuration(longest)));
  }
  const absl::StatusOr<Lease> lease = core.tiers.Pin(*keys, ttl, patience);
  // Memory knows now of all up to the first key that is not stored, and of all if they are leased.
  // Whatever the answer was: the first that the caller does not see is the one that is named.
  for (const BlockKey& key : *keys) {
    if (view.Sees(key)) continue;
    if (lease.ok()) core.store.Release(lease->id).IgnoreError();
    return absl::NotFoundError(absl::StrCat("segment ", key.ToHex(), " is not stored"));
  }
  if (!lease.ok()) return lease.status();
  if (absl::Status over = patience.Check(); !over.ok()) {
    core.store.Release(lease->id).IgnoreError();  // nobody would
    return over;
  }
  response.set_lease_id(view.TranslateLease(lease->id));
  *response.mutable_ttl() = ToProto(ttl);
  return absl::OkStatus();
}

absl::Status KeysExist(ServiceCore& core, const TenantView& view, const v1::ExistsRequest& request,
                       const Patience& patience, v1::ExistsResponse& response) {
  absl::StatusOr<std::vector<BlockKey>> keys =
      ParseKeys(request.block_keys(), "block_keys", kMaxKeysPerCall);
  if (!keys.ok()) return keys.status();
  for (const auto& segment : core.tiers.Describe(*keys, patience)) {
    response.add_stored(segment.has_value() && !view.IsForeign(*segment->context));
  }
  return absl::OkStatus();
}

// What every call goes through: who makes it, and whether it is its turn. `work` takes the view and
// the place that it works at.
template <typename Work>
grpc::Status Admit(ServiceCore& core, const grpc::ServerContext& context, CallWatch::Call& call,
                   Work work) {
  const absl::StatusOr<TenantView> view = TenantView::Of(core, context);
  if (!view.ok()) return ToGrpc(view.status());
  // Where everybody is one tenant, connections share the machine.
  WorkGate::Call place(&core.gate, core.access != nullptr ? view->tenant() : context.peer(),
                       call.patience());
  call.Begin();
  const absl::Status status = place.status().ok() ? work(*view, place) : place.status();
  return ToGrpc(call.status().ok() ? status : call.status());
}

}  // namespace

grpc::Status KvCacheServiceImpl::MatchPrefix(grpc::ServerContext* context,
                                             const v1::MatchPrefixRequest* request,
                                             v1::MatchPrefixResponse* response) {
  CallWatch::Call call(&watch_, context, Kind::kUnary);
  return Admit(*core_, *context, call, [&](const TenantView& view, WorkGate::Call& /*place*/) {
    return Match(*core_, view, *request, call.patience(), *response);
  });
}

grpc::Status KvCacheServiceImpl::PutSegments(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::PutSegmentsResponse, v1::PutSegmentsRequest>* stream) {
  CallWatch::Call call(&watch_, context, Kind::kStream);
  return Admit(*core_, *context, call, [&](const TenantView& view, WorkGate::Call& place) {
    return ServePut(*core_, view, *stream, call, place);
  });
}

grpc::Status KvCacheServiceImpl::GetSegments(grpc::ServerContext* context,
                                             const v1::GetSegmentsRequest* request,
                                             grpc::ServerWriter<v1::GetSegmentsResponse>* writer) {
  CallWatch::Call call(&watch_, context, Kind::kStream);
  return Admit(*core_, *context, call, [&](const TenantView& view, WorkGate::Call& place) {
    return ServeGet(*core_, view, *request, *writer, call, place);
  });
}

grpc::Status KvCacheServiceImpl::Pin(grpc::ServerContext* context, const v1::PinRequest* request,
                                     v1::PinResponse* response) {
  CallWatch::Call call(&watch_, context, Kind::kUnary);
  return Admit(*core_, *context, call, [&](const TenantView& view, WorkGate::Call& /*place*/) {
    return PinKeys(*core_, view, *request, call.patience(), *response);
  });
}

// Gives back what holds up others, at little cost: nobody is kept from that.
grpc::Status KvCacheServiceImpl::Release(grpc::ServerContext* context,
                                         const v1::ReleaseRequest* request,
                                         v1::ReleaseResponse* /*response*/) {
  const absl::StatusOr<TenantView> view = TenantView::Of(*core_, *context);
  if (!view.ok()) return ToGrpc(view.status());
  // A lease that is gone was released or has expired: what the caller wants is so.
  core_->store.Release(view->TranslateLease(request->lease_id())).IgnoreError();
  return grpc::Status::OK;
}

grpc::Status KvCacheServiceImpl::Exists(grpc::ServerContext* context,
                                        const v1::ExistsRequest* request,
                                        v1::ExistsResponse* response) {
  CallWatch::Call call(&watch_, context, Kind::kUnary);
  return Admit(*core_, *context, call, [&](const TenantView& view, WorkGate::Call& /*place*/) {
    return KeysExist(*core_, view, *request, call.patience(), *response);
  });
}

grpc::Status KvCacheServiceImpl::Delete(grpc::ServerContext* context,
                                        const v1::DeleteRequest* request,
                                        v1::DeleteResponse* response) {
  CallWatch::Call call(&watch_, context, Kind::kUnary);
  return Admit(*core_, *context, call, [&](const TenantView& view, WorkGate::Call& /*place*/) {
    return DeleteKeys(*core_, view, *request, call.patience(), *response);
  });
}

}  // namespace fourierkv
