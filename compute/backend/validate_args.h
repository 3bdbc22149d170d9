// Checks that every backend makes of what a caller passes, before any work: same refusals, same
// words. InvalidArgument naming the field at fault.

#pragma once

#include <span>

#include "absl/status/status.h"
#include "compute/backend/compute_backend.h"

namespace fourierkv {

absl::Status ValidateEncode(KvDtype dtype, std::span<const EncodeJob> jobs);
absl::Status ValidateDecode(KvDtype dtype, std::span<const DecodeJob> jobs);
absl::Status ValidateAttention(const AttentionArgs& args);

// Names the first value of `head` that cannot be encoded, which an encoder has found there.
absl::Status RefusedValue(const EncodeJob& job, int head, KvDtype dtype);

}  // namespace fourierkv
