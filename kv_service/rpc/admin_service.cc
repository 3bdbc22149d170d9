#include "kv_service/rpc/admin_service.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/miss_report.h"
#include "kv_service/core/tenant_salt.h"
#include "kv_service/rpc/build_info.h"
#include "kv_service/rpc/namespace_convert.h"
#include "kv_service/rpc/removal_convert.h"
#include "kv_service/rpc/tenant_view.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

constexpr int kRowsPerMessage = 512;
constexpr int kMostTokens = 1 << 22;
constexpr absl::Duration kLongestLook = absl::Seconds(10);

v1::StoredSegment ToRow(const SegmentSummary& segment, absl::Time now) {
  v1::StoredSegment row;
  row.set_block_key(segment.key.ToString());
  row.set_parent_key(segment.parent.ToString());
  row.set_namespace_key(segment.context->root.ToString());
  const CacheNamespace& ns = segment.context->ns;
  if (ns.profile_id.has_value()) row.set_profile_id(ns.profile_id->ToString());
  row.set_index(segment.index);
  row.set_tokens(segment.tokens);
  row.set_dense_bytes(ns.geometry.DenseBytes(segment.tokens));
  for (const v1::HeldForm& form : HeldForms(segment)) *row.add_forms() = form;
  row.set_leases(segment.holds);
  *row.mutable_idle_time() = ToProto(std::max(absl::ZeroDuration(), now - segment.last_use));
  return row;
}

absl::Status Explain(ServiceCore& core, const TenantView& view, absl::Time deadline,
                     const v1::ExplainMissRequest& request, v1::ExplainMissResponse& response) {
  if (request.token_ids_size() > kMostTokens) {
    return absl::InvalidArgumentError(absl::StrCat("token_ids has ", request.token_ids_size(),
                                                   " tokens; at most ", kMostTokens, " are taken"));
  }
  const absl::StatusOr<CacheNamespace> ns = FromProto(request.namespace_(), view.tenant());
  if (!ns.ok()) return ns.status();
  const absl::StatusOr<int64_t> capacity =
      ParseSequenceCapacity(request.sequence_capacity(), "sequence_capacity");
  if (!capacity.ok()) return capacity.status();
  const absl::StatusOr<MissReport> report = ExplainMiss(
      core.store, core.removals, *ns,
      std::span<const uint32_t>(request.token_ids().data(), request.token_ids_size()), *capacity,
      [&](std::span<const BlockKey> keys) {
        return core.tiers.Describe(keys, std::min(deadline, absl::Now() + kLongestLook));
      });
  if (!report.ok()) return report.status();
  const absl::Time now = absl::Now();
  for (const SegmentFate& fate : report->segments) {
    v1::SegmentFate* const row = response.add_segments();
    row->set_block_key(fate.key.ToString());
    row->set_index(fate.index);
    row->set_tokens(fate.tokens);
    if (fate.held.has_value()) {
      for (const v1::HeldForm& form : HeldForms(*fate.held)) *row->add_forms() = form;
    }
    if (!fate.removal.has_value()) continue;
    row->set_removal_reason(ToProto(fate.removal->reason));
    *row->mutable_removed_ago() = ToProto(std::max(absl::ZeroDuration(), now - fate.removal->when));
  }
  for (const NearNamespace& near : report->elsewhere) {
    v1::NearNamespace* const row = response.add_elsewhere();
    row->set_namespace_key(near.root.ToString());
    row->set_matched_segments(near.matched_segments);
    for (const FieldDifference& difference : near.differences) {
      v1::FieldDifference* const field = row->add_differences();
      field->set_field(difference.field);
      field->set_asked(difference.asked);
      field->set_held(difference.held);
    }
  }
  if (report->history_since != absl::InfinitePast()) {
    *response.mutable_history() =
        ToProto(std::max(absl::ZeroDuration(), now - report->history_since));
  }
  return absl::OkStatus();
}

}  // namespace

grpc::Status AdminServiceImpl::GetStats(grpc::ServerContext* /*context*/,
                                        const v1::GetStatsRequest* /*request*/,
                                        v1::GetStatsResponse* response) {
  const StoreStats stats = core_->store.Stats();
  const StoreMetrics& metrics = *core_->metrics;
  response->set_version(FOURIERKV_VERSION);
  response->set_backend(core_->backend->name());
  *response->mutable_uptime() = ToProto(absl::Now() - core_->started);
  response->set_budget_bytes(core_->budget->limit());
  response->set_used_bytes(core_->budget->used());
  response->set_segments(stats.segments);
  response->set_exact_bytes(stats.forms[SegmentForm::kExact].bytes);
  response->set_lossless_bytes(stats.forms[SegmentForm::kLossless].bytes);
  response->set_compact_bytes(stats.forms[SegmentForm::kCompact].bytes);
  response->set_archived_bytes(stats.forms[SegmentForm::kArchived].bytes);
  response->set_leases(stats.leases);
  response->set_open_puts(core_->puts.running());
  response->set_bytes_received(metrics.bytes_in);
  response->set_bytes_sent(metrics.bytes_out);
  response->set_evicted_segments(metrics.evicted_segments);
  response->set_corrupt_segments(metrics.corrupt_blobs);
  response->set_encoded_dense_bytes(metrics.encoded_dense_bytes);
  *response->mutable_encode_time() =
      ToProto(absl::Nanoseconds(static_cast<int64_t>(metrics.encode_nanoseconds.load())));
  return grpc::Status::OK;
}

grpc::Status AdminServiceImpl::ListSegments(grpc::ServerContext* /*context*/,
                                            const v1::ListSegmentsRequest* request,
                                            grpc::ServerWriter<v1::ListSegmentsResponse>* writer) {
  const std::vector<SegmentSummary> rows = core_->store.List(request->limit());
  const absl::Time now = absl::Now();
  v1::ListSegmentsResponse response;
  for (const SegmentSummary& row : rows) {
    *response.add_segments() = ToRow(row, now);
    if (response.segments_size() == kRowsPerMessage) {
      if (!writer->Write(response)) return grpc::Status::CANCELLED;
      response.Clear();
    }
  }
  if (response.segments_size() > 0) writer->Write(response);
  return grpc::Status::OK;
}

grpc::Status AdminServiceImpl::ExplainMiss(grpc::ServerContext* context,
                                           const v1::ExplainMissRequest* request,
                                           v1::ExplainMissResponse* response) {
  const absl::StatusOr<TenantView> view = TenantView::Of(*core_, *context);
  return ToGrpc(
      view.ok() ? Explain(*core_, *view, absl::FromChrono(context->deadline()), *request, *response)
                : view.status());
}

grpc::Status AdminServiceImpl::GetBuildInfo(grpc::ServerContext* /*context*/,
                                            const v1::GetBuildInfoRequest* /*request*/,
                                            v1::GetBuildInfoResponse* response) {
  *response = BuildInfo();
  return grpc::Status::OK;
}

grpc::Status AdminServiceImpl::ListTenants(grpc::ServerContext* /*context*/,
                                           const v1::ListTenantsRequest* /*request*/,
                                           v1::ListTenantsResponse* response) {
  std::map<std::string, uint64_t> namespaces;
  for (const auto& context : core_->store.Namespaces()) {
    ++namespaces[std::string(TenantOf(context->ns))];
  }
  for (const auto& [tenant, count] : namespaces) {
    v1::TenantUsage* const row = response->add_tenants();
    row->set_tenant(tenant);
    row->set_namespaces(count);
    row->set_stored_bytes(static_cast<uint64_t>(core_->store.TenantBytes(tenant)));
    row->set_stored_bytes_limit(static_cast<uint64_t>(core_->quotas->StoredLimit(tenant)));
  }
  return grpc::Status::OK;
}

grpc::Status AdminServiceImpl::VerifySegments(grpc::ServerContext* context,
                                              const v1::VerifySegmentsRequest* /*request*/,
                                              v1::VerifySegmentsResponse* response) {
  const CallWatch::Call call(&watch_, context, CallWatch::Kind::kUnary);
  const absl::StatusOr<MemoryCheck> check = core_->reader.CheckMemory(call.patience());
  if (!check.ok()) return ToGrpc(check.status());
  response->set_segments(static_cast<uint64_t>(check->segments));
  response->set_forms(static_cast<uint64_t>(check->forms));
  response->set_bytes(static_cast<uint64_t>(check->bytes));
  response->set_damaged_forms(static_cast<uint64_t>(check->damaged_forms));
  return grpc::Status::OK;
}

grpc::Status AdminServiceImpl::Drain(grpc::ServerContext* context,
                                     const v1::DrainRequest* /*request*/,
                                     v1::DrainResponse* /*response*/) {
  if (drain_ == nullptr) {
    return ToGrpc(absl::FailedPreconditionError("this server cannot be stopped by a call"));
  }
  Log(LogLevel::kInfo, "server.drain_asked", {{"peer", context->peer()}});
  drain_();
  return grpc::Status::OK;
}

}  // namespace fourierkv
