// Calls to prefill and decode workers.

#pragma once

#include <grpcpp/channel.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fourierkv/v1/decode_service.grpc.pb.h"
#include "fourierkv/v1/prefill_service.grpc.pb.h"

namespace fourierkv {

// Thread safe.
class PrefillClient {
 public:
  explicit PrefillClient(const std::shared_ptr<grpc::Channel>& channel);

  // `on_progress` may be empty. Errors are the worker's.
  absl::StatusOr<v1::PrefillResult> Prefill(
      const v1::PrefillRequest& request, absl::Time deadline,
      const std::function<void(const v1::PrefillProgress&)>& on_progress);

 private:
  std::unique_ptr<v1::PrefillService::Stub> stub_;
};

// Thread safe.
class DecodeClient {
 public:
  explicit DecodeClient(const std::shared_ptr<grpc::Channel>& channel);

  // `on_token` may be empty; it is called as tokens are made. Errors are the worker's.
  absl::StatusOr<v1::GenerateResult> Generate(
      const v1::GenerateRequest& request, absl::Time deadline,
      const std::function<void(const v1::GeneratedToken&)>& on_token);

 private:
  std::unique_ptr<v1::DecodeService::Stub> stub_;
};

}  // namespace fourierkv
