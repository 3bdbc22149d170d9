#include "clients/cpp/worker_client.h"

#include <grpcpp/grpcpp.h>

#include <optional>

#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

// Reads a stream whose last message is its result.
template <typename Result, typename Response, typename Visit>
absl::StatusOr<Result> ReadToResult(grpc::ClientReader<Response>& reader, const Visit& visit) {
  std::optional<Result> result;
  Response response;
  while (reader.Read(&response)) {
    if (response.has_result()) {
      result = response.result();
    } else {
      visit(response);
    }
  }
  const grpc::Status status = reader.Finish();
  if (!status.ok()) return FromGrpc(status);
  if (!result.has_value()) return absl::InternalError("the worker ended without a result");
  return *std::move(result);
}

}  // namespace

PrefillClient::PrefillClient(const std::shared_ptr<grpc::Channel>& channel)
    : stub_(v1::PrefillService::NewStub(channel)) {}

absl::StatusOr<v1::PrefillResult> PrefillClient::Prefill(
    const v1::PrefillRequest& request, absl::Time deadline,
    const std::function<void(const v1::PrefillProgress&)>& on_progress) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  auto reader = stub_->Prefill(&context, request);
  return ReadToResult<v1::PrefillResult>(*reader, [&](const v1::PrefillResponse& response) {
    if (on_progress) on_progress(response.progress());
  });
}

DecodeClient::DecodeClient(const std::shared_ptr<grpc::Channel>& channel)
    : stub_(v1::DecodeService::NewStub(channel)) {}

absl::StatusOr<v1::GenerateResult> DecodeClient::Generate(
    const v1::GenerateRequest& request, absl::Time deadline,
    const std::function<void(const v1::GeneratedToken&)>& on_token) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  auto reader = stub_->Generate(&context, request);
  return ReadToResult<v1::GenerateResult>(*reader, [&](const v1::GenerateResponse& response) {
    if (on_token) on_token(response.token());
  });
}

}  // namespace fourierkv
