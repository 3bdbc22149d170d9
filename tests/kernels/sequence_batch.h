// Sequences in the published form for the tests and benchmarks of its attention kernels: random
// payloads, the same on the device, and their attention in float64.

#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/codec/sequence_layout.h"
#include "kernels/sequence_attention.h"

namespace fourierkv {

// K and V of one layer of one sequence, as docs/format.md, section 8, has them.
struct SequencePayloads {
  int64_t tokens = 0;
  int64_t capacity = 0;
  std::vector<std::byte> k, v;
};

// Payloads of about normal values that vary slowly and fast along time; CheckSequencePayload
// accepts them.
SequencePayloads RandomSequence(const SequencePart& k, const SequencePart& v, int64_t tokens,
                                int64_t capacity, KvDtype dtype, std::mt19937& random);

// A profile of one layer whose heads have the given numbers of spectral channels, chosen at random.
CodecProfile SequenceProfile(int head_dim, const SequenceScope& scope, int coefficient_bits,
                             const std::vector<int>& k_spectral, const std::vector<int>& v_spectral,
                             std::mt19937& random);

// What stands in the payloads, in device memory as the kernels want it. Whatever is between
// sections and behind the residents' tokens is NaN.
class SequenceBatch {
 public:
  // Payloads may be in the batch more than once; each gets memory of its own. Rows of residents are
  // a multiple of row_unit elements apart. What device memory or the runtime refuse.
  static absl::StatusOr<SequenceBatch> Create(const SequencePart& k, const SequencePart& v,
                                              std::span<const SequencePayloads* const> sequences,
                                              int row_unit = 8);

  // Sets all fields that describe heads and sequences. The pointers are this object's.
  void Describe(kernels::SequenceAttentionParams* params) const;
  // Bytes of exact tokens, coefficients and residents: what attention must read.
  int64_t bytes() const { return bytes_; }

 private:
  kernels::SequenceAttentionParams params_ = {};
  std::vector<DeviceBuffer> buffers_;
  int64_t bytes_ = 0;
};

// Attention of query heads of one KV head of a sequence. q: [group][head_dim]. The same sums as
// kernels take, in another order: scores B (C q) and outputs C^T (B^T p).
struct HeadAttention {
  std::vector<double> out;  // like q
  std::vector<double> lse;  // [group]
};
HeadAttention ReferenceAttention(const SequencePart& k, const SequencePart& v,
                                 const SequencePayloads& sequence, KvDtype dtype, int head,
                                 double scale, std::span<const float> q);

}  // namespace fourierkv
