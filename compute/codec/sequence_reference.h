// The whole-sequence form in float64, written for clarity: what the fast code is compared with.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "compute/codec/sequence_layout.h"

namespace fourierkv::reference {

// Row t, state s of the basis (SequenceScope).
double SequenceBasisValue(const SequenceScope& scope, int64_t period, int state, int64_t t);

// dense: [kv_heads][tokens][head_dim], finite and within +-1e30. payload:
// part.PayloadBytes(tokens), all of which is written. Returns ||X - X^||_F / ||X||_F over all
// tokens; 0 if X is 0. Time is proportional to tokens * states.
double EncodeSequence(const SequencePart& part, int64_t tokens, int64_t capacity, KvDtype dtype,
                      std::span<const uint16_t> dense, std::span<std::byte> payload);

// The exact meaning of a payload: [kv_heads][tokens][head_dim].
std::vector<double> DecodeSequence(const SequencePart& part, KvDtype dtype,
                                   std::span<const std::byte> payload);

}  // namespace fourierkv::reference
