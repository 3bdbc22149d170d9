// Payloads of whole sequences from outside, and values that may be encoded.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "compute/base/geometry.h"
#include "compute/codec/sequence_layout.h"

namespace fourierkv {

// InvalidArgument, naming head and section, unless `payload` is the payload of K or V of a layer of
// a sequence of `tokens` tokens (1 to capacity, which is at most kMaxSequenceTokens): that long;
// the prefix saying so; exact values finite and within +-1e30; coefficients within +-2^64, gains
// from 0 to 2^40, shifts and residents within +-2^100; padding zero. Such a payload decodes to
// finite values only. NaN and infinity are thereby refused.
absl::Status CheckSequencePayload(const SequencePart& part, int64_t tokens, int64_t capacity,
                                  KvDtype dtype, std::span<const std::byte> payload);

// Whether all of n values are finite and within +-1e30, as everything that is encoded must be.
bool AllEncodable(KvDtype dtype, const uint16_t* values, int64_t n);

}  // namespace fourierkv
