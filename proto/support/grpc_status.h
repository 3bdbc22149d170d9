// absl::Status <-> grpc::Status. The codes have the same numbers; the message is kept.

#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace fourierkv {

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

inline absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

}  // namespace fourierkv
