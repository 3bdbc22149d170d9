// absl::Status <-> grpc::Status. The codes have the same numbers; the message and the advice when
// to retry (retry_info.h) are kept.

#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "proto/support/retry_info.h"

namespace fourierkv {

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
          StatusDetails(status)};
}

inline absl::Status FromGrpc(const grpc::Status& status) {
  return WithStatusDetails(
      absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()),
      status.error_details());
}

}  // namespace fourierkv
