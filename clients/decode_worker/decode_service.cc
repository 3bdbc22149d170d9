#include "clients/decode_worker/decode_service.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "clients/decode_worker/decode_engine.h"
#include "clients/worker/token_ids.h"
#include "compute/base/structured_log.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

// For callers that set none.
constexpr absl::Duration kLongestGeneration = absl::Minutes(30);

absl::StatusOr<GenerateTask> ParseRequest(const v1::GenerateRequest& request,
                                          const WorkerRuntime& runtime) {
  const ModelConfig& config = runtime.model()->config();
  GenerateTask task;
  if (request.max_new_tokens() < 1) {
    return absl::InvalidArgumentError("max_new_tokens is 0; it must be at least 1");
  }
  absl::StatusOr<std::vector<int32_t>> tokens =
      ParseTokenIds(request.token_ids(), config, request.max_new_tokens());
  if (!tokens.ok()) return tokens.status();
  task.tokens = *std::move(tokens);
  task.max_new_tokens = static_cast<int>(request.max_new_tokens());
  if (request.prefilled_tokens() > task.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("prefilled_tokens is ",
                                                   request.prefilled_tokens(), "; the prompt has ",
                                                   task.tokens.size(), " tokens"));
  }
  task.prefilled_tokens = static_cast<int64_t>(request.prefilled_tokens());
  if (request.stop_token_ids_size() > 64) {
    return absl::InvalidArgumentError("stop_token_ids has more than 64 tokens");
  }
  for (const uint32_t id : request.stop_token_ids()) {
    if (id >= static_cast<uint32_t>(config.vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "stop_token_ids: ", id, " is outside the vocabulary of ", config.vocab_size));
    }
    task.stop_tokens.push_back(static_cast<int32_t>(id));
  }
  task.sampling.temperature = request.sampling().temperature();
  task.sampling.top_p = request.sampling().top_p() == 0 ? 1.0 : request.sampling().top_p();
  task.sampling.seed = request.sampling().seed();
  absl::StatusOr<v1::CacheMode> mode = ParseCacheMode(request.cache_mode());
  if (!mode.ok()) return mode.status();
  task.mode = *mode;
  task.recent_window = runtime.RecentWindow(request.recent_window());
  const int64_t shortest = static_cast<int64_t>(task.tokens.size()) + task.max_new_tokens;
  if (request.sequence_capacity() > static_cast<uint64_t>(kMaxSequenceTokens)) {
    return absl::InvalidArgumentError(absl::StrCat("sequence_capacity is ",
                                                   request.sequence_capacity(),
                                                   "; it must be at most ", kMaxSequenceTokens));
  }
  task.sequence_capacity = request.sequence_capacity() == 0
                               ? shortest
                               : static_cast<int64_t>(request.sequence_capacity());
  absl::StatusOr<float> bound = ParseErrorBound(request.max_relative_error());
  if (!bound.ok()) return bound.status();
  task.max_relative_error = *bound;
  return task;
}

}  // namespace

grpc::Status DecodeServiceImpl::Generate(grpc::ServerContext* context,
                                         const v1::GenerateRequest* request,
                                         grpc::ServerWriter<v1::GenerateResponse>* writer) {
  const absl::Status status = Run(*context, *request, *writer);
  if (!status.ok()) {
    Log(LogLevel::kInfo, "decode.failed", {{"peer", context->peer()}, {"status", status}});
  }
  return ToGrpc(status);
}

absl::Status DecodeServiceImpl::Run(grpc::ServerContext& context,
                                    const v1::GenerateRequest& request,
                                    grpc::ServerWriter<v1::GenerateResponse>& writer) {
  absl::StatusOr<Admission::Ticket> ticket = admission_.Enter();
  if (!ticket.ok()) return ticket.status();
  absl::StatusOr<GenerateTask> task = ParseRequest(request, *runtime_);
  if (!task.ok()) return task.status();
  task->deadline = std::min(absl::FromChrono(context.deadline()), absl::Now() + kLongestGeneration);
  task->on_token = [&](const SampledToken& token) {
    v1::GenerateResponse response;
    response.mutable_token()->set_token_id(token.token);
    response.mutable_token()->set_log_probability(static_cast<float>(token.log_probability));
    return writer.Write(response) && !context.IsCancelled();
  };
  task->cancelled = [&context] { return context.IsCancelled(); };
  absl::StatusOr<v1::GenerateResult> result = RunDecode(*runtime_, *task);
  if (!result.ok()) return result.status();
  Log(LogLevel::kInfo, "decode.done",
      {{"prompt_tokens", result->prompt_tokens()},
       {"reused", result->reused_tokens()},
       {"new_tokens", result->new_tokens()},
       {"fetched_bytes", result->payload_bytes_fetched()},
       {"first_token_ms", absl::ToDoubleMilliseconds(FromProto(result->time_to_first_token()))},
       {"decode_ms", absl::ToDoubleMilliseconds(FromProto(result->decode_time()))}});
  v1::GenerateResponse response;
  *response.mutable_result() = *std::move(result);
  writer.Write(response);
  return absl::OkStatus();
}

}  // namespace fourierkv
