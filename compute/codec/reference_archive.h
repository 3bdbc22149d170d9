// The transform of archived segments in float64, written for clarity: what the fast one is compared
// with.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compute/codec/profile.h"

namespace fourierkv::reference {

// The quotients that an encoder rounds: [kv_heads][head_dim][S], 64 frequencies per block.
//   dense: [kv_heads][S][head_dim]; `profile` must be valid and have an archive section.
std::vector<double> ArchiveForward(const CodecProfile& profile, int layer, Part part, KvDtype dtype,
                                   int64_t first_token, std::span<const uint16_t> dense);

// sign(y) * floor(|y| + rounding / 256)
int ArchiveRound(double y, int rounding);

// The exact meaning of integers q [kv_heads][head_dim][S]: values [kv_heads][S][head_dim].
std::vector<double> ArchiveInverse(const CodecProfile& profile, int layer, Part part,
                                   int64_t first_token, std::span<const int16_t> q);

}  // namespace fourierkv::reference
