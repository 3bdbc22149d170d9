// When to try again: google.rpc.RetryInfo, on statuses and on the wire.

#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace fourierkv {

// What callers are told that do not know better: room for a segment is made in about that time.
inline constexpr absl::Duration kDefaultRetryDelay = absl::Seconds(1);

// `status`, which must not be OK, with the advice to try again after `delay`.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);

// The advice that a status carries, if it does.
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

// Serialized google.rpc.Status with the status's code, message and advice, as gRPC carries it in
// "grpc-status-details-bin"; RESOURCE_EXHAUSTED always has an advice. Empty without one.
std::string StatusDetails(const absl::Status& status);

// Adds the advice in `details`, if there is one, to `status`. Anything else in them is ignored, as
// are details that are malformed.
absl::Status WithStatusDetails(absl::Status status, const std::string& details);

}  // namespace fourierkv
