#include "clients/prefill_worker/prefill_service.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/prefill_worker/prefill_engine.h"
#include "clients/worker/token_ids.h"
#include "compute/base/structured_log.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

// For callers that set none.
constexpr absl::Duration kLongestPrefill = absl::Minutes(30);

absl::Status CheckCompressedForm(const PrefillTask& task, const CodecProfile& profile) {
  if (task.compressed_form == v1::SEGMENT_FORM_COMPACT) return absl::OkStatus();
  if (task.compressed_form != v1::SEGMENT_FORM_ARCHIVED) {
    return absl::InvalidArgumentError(absl::StrCat("compressed_form is ",
                                                   static_cast<int>(task.compressed_form),
                                                   "; it must be COMPACT or ARCHIVED"));
  }
  if (task.mode != v1::CACHE_MODE_COMPACT) {
    return absl::InvalidArgumentError(
        "compressed_form is ARCHIVED, but nothing is compressed with this cache_mode");
  }
  if (profile.archive.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("compressed_form is ARCHIVED, but the worker's codec profile '", profile.name,
                   "' has no archive section; give it one that has"));
}

}  // namespace

grpc::Status PrefillServiceImpl::Prefill(grpc::ServerContext* context,
                                         const v1::PrefillRequest* request,
                                         grpc::ServerWriter<v1::PrefillResponse>* writer) {
  const absl::Status status = Run(*context, *request, *writer);
  if (!status.ok()) {
    Log(LogLevel::kInfo, "prefill.failed", {{"peer", context->peer()}, {"status", status}});
  }
  return ToGrpc(status);
}

absl::Status PrefillServiceImpl::Run(grpc::ServerContext& context,
                                     const v1::PrefillRequest& request,
                                     grpc::ServerWriter<v1::PrefillResponse>& writer) {
  absl::StatusOr<Admission::Ticket> ticket = admission_.Enter();
  if (!ticket.ok()) return ticket.status();
  PrefillTask task;
  absl::StatusOr<std::vector<int32_t>> tokens =
      ParseTokenIds(request.token_ids(), runtime_->model()->config(), request.max_new_tokens());
  if (!tokens.ok()) return tokens.status();
  task.tokens = *std::move(tokens);
  task.max_new_tokens = request.max_new_tokens();
  task.encode_here = runtime_->engine().encodes_cheaply();
  absl::StatusOr<v1::CacheMode> mode = ParseCacheMode(request.cache_mode());
  if (!mode.ok()) return mode.status();
  task.mode = *mode;
  task.recent_window = runtime_->RecentWindow(request.recent_window());
  absl::StatusOr<float> bound = ParseErrorBound(request.max_relative_error());
  if (!bound.ok()) return bound.status();
  task.max_relative_error = *bound;
  if (request.exact_form() != v1::SEGMENT_FORM_UNSPECIFIED) task.exact_form = request.exact_form();
  if (task.exact_form != v1::SEGMENT_FORM_EXACT && task.exact_form != v1::SEGMENT_FORM_LOSSLESS) {
    return absl::InvalidArgumentError(absl::StrCat(
        "exact_form is ", static_cast<int>(task.exact_form), "; it must be EXACT or LOSSLESS"));
  }
  if (request.compressed_form() != v1::SEGMENT_FORM_UNSPECIFIED) {
    task.compressed_form = request.compressed_form();
  }
  if (absl::Status s = CheckCompressedForm(task, runtime_->layout()->profile()); !s.ok()) return s;
  task.deadline = std::min(absl::FromChrono(context.deadline()), absl::Now() + kLongestPrefill);
  task.cancelled = [&context] { return context.IsCancelled(); };
  task.on_progress = [&writer](int64_t done, int64_t total) {
    v1::PrefillResponse response;
    response.mutable_progress()->set_tokens_done(done);
    response.mutable_progress()->set_tokens_total(total);
    writer.Write(response);
  };
  absl::StatusOr<v1::PrefillResult> result = RunPrefill(*runtime_, task);
  if (!result.ok()) return result.status();
  Log(LogLevel::kInfo, "prefill.done",
      {{"tokens", result->tokens()},
       {"reused", result->reused_tokens()},
       {"computed", result->computed_tokens()},
       {"sent_bytes", result->payload_bytes_sent()},
       {"ms", absl::ToDoubleMilliseconds(FromProto(result->total_time()))}});
  v1::PrefillResponse response;
  *response.mutable_result() = *std::move(result);
  writer.Write(response);
  return absl::OkStatus();
}

}  // namespace fourierkv
