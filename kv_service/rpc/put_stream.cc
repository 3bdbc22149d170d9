#include "kv_service/rpc/put_stream.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/rpc/namespace_convert.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxChunkBytes = 1 << 20;
constexpr absl::Duration kLongestCommit = absl::Minutes(1);

absl::StatusOr<PutPlan> ParseHeader(const v1::PutHeader& header, const std::string& tenant,
                                    const ProfileStore& profiles) {
  absl::StatusOr<std::shared_ptr<const NamespaceContext>> context =
      ResolveNamespace(header.namespace_(), tenant, profiles);
  if (!context.ok()) return context.status();
  PutPlan plan;
  plan.context = *std::move(context);
  if (!header.parent_key().empty()) {
    absl::StatusOr<Digest> parent = Digest::FromRaw(header.parent_key(), "header.parent_key");
    if (!parent.ok()) return parent.status();
    plan.parent = *parent;
  }
  if (header.first_segment_index() > kMaxSegmentIndex) {
    return absl::InvalidArgumentError(absl::StrCat("header.first_segment_index is ",
                                                   header.first_segment_index(),
                                                   "; it must be at most ", kMaxSegmentIndex));
  }
  plan.first_segment_index = static_cast<int64_t>(header.first_segment_index());
  plan.token_ids.assign(header.token_ids().begin(), header.token_ids().end());
  switch (header.payload_form()) {
    case v1::SEGMENT_FORM_EXACT:
      plan.payload = PutPayload::kDense;
      break;
    case v1::SEGMENT_FORM_COMPACT:
      plan.payload = PutPayload::kCompact;
      break;
    case v1::SEGMENT_FORM_LOSSLESS:
      plan.payload = PutPayload::kLossless;
      break;
    case v1::SEGMENT_FORM_ARCHIVED:
      return absl::UnimplementedError(
          "header.payload_form is ARCHIVED, which this version cannot receive: send EXACT or "
          "LOSSLESS, with compressed_form ARCHIVED");
    default:
      return absl::InvalidArgumentError(absl::StrCat("header.payload_form is ",
                                                     static_cast<int>(header.payload_form()),
                                                     "; it must be EXACT, LOSSLESS or COMPACT"));
  }
  plan.keep_exact_from = static_cast<int64_t>(
      std::min<uint64_t>(header.keep_exact_from(), static_cast<uint64_t>(kMaxSegmentIndex) + 1));
  if (header.exact_form() != v1::SEGMENT_FORM_UNSPECIFIED) {
    absl::StatusOr<SegmentForm> form = FromProto(header.exact_form(), "header.exact_form");
    if (!form.ok()) return form.status();
    plan.exact_form = *form;
  }
  if (header.compressed_form() != v1::SEGMENT_FORM_UNSPECIFIED) {
    absl::StatusOr<SegmentForm> form =
        FromProto(header.compressed_form(), "header.compressed_form");
    if (!form.ok()) return form.status();
    plan.compressed_form = *form;
  }
  absl::StatusOr<float> bound =
      ParseErrorBound(header.max_relative_error(), "header.max_relative_error");
  if (!bound.ok()) return bound.status();
  plan.max_relative_error = *bound;
  absl::StatusOr<int64_t> capacity =
      ParseSequenceCapacity(header.sequence_capacity(), "header.sequence_capacity");
  if (!capacity.ok()) return capacity.status();
  plan.sequence_capacity = *capacity;
  absl::StatusOr<Durability> durability = FromProto(header.durability(), "header.durability");
  if (!durability.ok()) return durability.status();
  plan.durability = *durability;
  if (header.has_ttl()) plan.ttl = FromProto(header.ttl());
  return plan;
}

// The answer, too, has to arrive in time. A client without a deadline does not wait for ever for a
// disk that hangs.
Patience CommitPatience(const Patience& call) {
  const absl::Time now = absl::Now();
  return call.Until(now + std::min((call.deadline() - now) * 0.9, kLongestCommit));
}

absl::Status AddChunk(PutSession& put, const v1::PutChunk& chunk) {
  absl::StatusOr<Part> part = FromProto(chunk.part(), "chunk.part");
  if (!part.ok()) return part.status();
  if (chunk.data().size() > kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("chunk.data has ", chunk.data().size(),
                                                   " bytes; send at most ", kMaxChunkBytes,
                                                   " in one chunk"));
  }
  constexpr uint64_t kHuge = uint64_t{1} << 40;  // beyond every bound that the session checks
  return put.AddChunk(static_cast<int64_t>(std::min(chunk.segment_index(), kHuge)),
                      static_cast<int>(std::min<uint32_t>(chunk.layer(), 1u << 20)), *part,
                      static_cast<int64_t>(std::min(chunk.offset(), kHuge)),
                      std::as_bytes(std::span(chunk.data())), chunk.checksum(),
                      static_cast<int64_t>(std::min(chunk.part_bytes(), kHuge)));
}

v1::PutSegmentsResponse Accepted(const PutSession& put) {
  v1::PutSegmentsResponse response;
  v1::PutAccepted* accepted = response.mutable_accepted();
  for (const PlannedSegment& segment : put.segments()) {
    accepted->add_block_keys(segment.key.ToString());
    if (segment.needed) accepted->add_needed_segments(segment.index);
  }
  return response;
}

v1::PutSegmentsResponse Committed(const PutStats& stats) {
  v1::PutSegmentsResponse response;
  v1::PutCommitted* committed = response.mutable_committed();
  committed->set_durability(ToProto(stats.durability));
  committed->set_stored_segments(stats.segments_stored);
  committed->set_deduplicated_segments(stats.segments_deduplicated);
  committed->set_payload_bytes_received(stats.bytes_received);
  committed->set_exact_bytes(stats.exact_bytes);
  committed->set_lossless_bytes(stats.lossless_bytes);
  committed->set_compact_bytes(stats.compact_bytes);
  committed->set_archived_bytes(stats.archived_bytes);
  committed->set_encoded_dense_bytes(stats.encoded_dense_bytes);
  *committed->mutable_encode_time() = ToProto(absl::Seconds(stats.encode_seconds));
  committed->set_max_relative_error(stats.max_relative_error);
  committed->set_bounded_segments(static_cast<uint32_t>(stats.bounded_segments));
  return response;
}

// What all of a put's tokens take as they come, at most.
int64_t DenseBytes(const PutPlan& plan) {
  const int64_t tokens = static_cast<int64_t>(plan.token_ids.size());
  return tokens * plan.context->ns.geometry.DenseBytes(1);
}

// What the largest chunk of a put takes while it is received, at most: as it comes, and as a
// message.
int64_t ChunkBytes(const PutSession& put, const KvGeometry& geometry) {
  int64_t largest = 0;
  for (const PlannedSegment& segment : put.segments()) {
    if (segment.needed) largest = std::max(largest, geometry.PartBytes(segment.tokens));
  }
  return 2 * std::min<int64_t>(largest, kMaxChunkBytes);
}

}  // namespace

absl::Status ServePut(ServiceCore& core, const TenantView& view, PutServerStream& stream,
                      CallWatch::Call& call, WorkGate::Call& place) {
  const absl::Time begun = absl::Now();
  const absl::StatusOr<TenantQuotas::Share> share = core.quotas->TakeStream(view.tenant());
  if (!share.ok()) return share.status();
  v1::PutSegmentsRequest request;
  const auto read = [&] {
    call.AwaitClient();
    place.Pause();
    const bool more = stream.Read(&request);
    call.Progress();
    if (more) place.Continue();
    return more;
  };
  const auto write = [&](const v1::PutSegmentsResponse& response) {
    call.AwaitClient();
    const bool written = stream.Write(response);
    call.Progress();
    return written;
  };
  if (!read()) return absl::CancelledError("the put ended before its header");
  if (!request.has_header()) {
    return absl::InvalidArgumentError("the first message of a put must be its header");
  }
  absl::StatusOr<PutPlan> plan = ParseHeader(request.header(), view.tenant(), core.profiles);
  if (!plan.ok()) return plan.status();
  const absl::StatusOr<TenantQuotas::Share> in_flight =
      core.quotas->TakeInFlight(view.tenant(), DenseBytes(*plan));
  if (!in_flight.ok()) return in_flight.status();
  // Too many seconds for a duration are an infinite one.
  const absl::Duration longest = core.live.max_ttl.Get();
  if (request.header().has_ttl() && plan->ttl > longest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header.ttl is ", absl::FormatDuration(plan->ttl), "; it must be above 0 and at most ",
        absl::FormatDuration(longest), " (--max-ttl-seconds)"));
  }
  request.Clear();  // a header may be large, and the first chunk late
  plan->tenant_limit_bytes = core.quotas->StoredLimit(view.tenant());
  const KvGeometry geometry = plan->context->ns.geometry;
  absl::StatusOr<std::unique_ptr<PutSession>> put =
      core.puts.Begin(*std::move(plan), call.patience(), call.patience());
  if (!put.ok()) return put.status();
  const absl::StatusOr<MemoryReservation> receiving =
      core.budget->TryReserve(ChunkBytes(**put, geometry));
  if (!receiving.ok()) return receiving.status();
  if (!write(Accepted(**put))) return absl::CancelledError("the client is gone");

  while (read()) {
    switch (request.message_case()) {
      case v1::PutSegmentsRequest::kChunk:
        if (absl::Status s = AddChunk(**put, request.chunk()); !s.ok()) return s;
        break;
      case v1::PutSegmentsRequest::kCommit: {
        absl::StatusOr<PutStats> stats = (*put)->Commit(CommitPatience(call.patience()));
        if (!stats.ok()) return stats.status();
        Log(LogLevel::kInfo, "put.commit",
            {{"stored", stats->segments_stored},
             {"deduplicated", stats->segments_deduplicated},
             {"received_bytes", stats->bytes_received},
             {"exact_bytes", stats->exact_bytes},
             {"lossless_bytes", stats->lossless_bytes},
             {"compact_bytes", stats->compact_bytes},
             {"archived_bytes", stats->archived_bytes},
             {"durability", DurabilityName(stats->durability)},
             {"max_relative_error", static_cast<double>(stats->max_relative_error)},
             {"ms", absl::ToDoubleMilliseconds(absl::Now() - begun)}});
        write(Committed(*stats));
        return absl::OkStatus();
      }
      case v1::PutSegmentsRequest::kHeader:
        return absl::InvalidArgumentError("a put has one header; open another stream");
      case v1::PutSegmentsRequest::MESSAGE_NOT_SET:
        return absl::InvalidArgumentError("a message of a put must be header, chunk or commit");
    }
  }
  return absl::CancelledError("the put ended without a commit; nothing was stored");
}

}  // namespace fourierkv
