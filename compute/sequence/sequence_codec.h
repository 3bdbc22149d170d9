// Encodes and decodes K or V of one layer of a whole sequence.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/sequence_layout.h"
#include "compute/sequence/sequence_basis.h"
#include "compute/sequence/sequence_middle.h"

namespace fourierkv {

// The basis of a sequence, shared by its layers; null where every token is exact. Requires what
// CheckSequenceShape accepts.
std::shared_ptr<const SequenceBasis> MakeSequenceBasis(const SequenceScope& scope, int64_t tokens,
                                                       int64_t capacity);

// dense: [kv_heads][tokens][head_dim]; payload: part.PayloadBytes(tokens), all written; basis: that
// of MakeSequenceBasis. Returns the measured relative error ||X - X^||_F / ||X||_F over all tokens.
// InvalidArgument for values that are NaN, infinite or so large that the payload could not hold
// them.
absl::StatusOr<float> EncodeSequence(const SequencePart& part, int64_t tokens, int64_t capacity,
                                     std::shared_ptr<const SequenceBasis> basis, KvDtype dtype,
                                     const uint16_t* dense, std::span<std::byte> payload,
                                     ThreadPool& pool);

// The same back, rounded to `dtype`. The payload must be one that CheckSequencePayload accepts.
void DecodeSequence(const SequencePart& part, int64_t tokens,
                    std::shared_ptr<const SequenceBasis> basis, KvDtype dtype,
                    std::span<const std::byte> payload, uint16_t* dense, ThreadPool& pool);

// The middle in a payload that CheckSequencePayload accepts.
std::unique_ptr<SequenceMiddle> ReadSequenceMiddle(const SequencePart& part, int64_t tokens,
                                                   std::shared_ptr<const SequenceBasis> basis,
                                                   std::span<const std::byte> payload);

}  // namespace fourierkv
