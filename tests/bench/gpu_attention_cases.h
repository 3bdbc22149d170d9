// What the attention benchmark measures: sizes, codec profiles, and names for both. No device code.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/codec/profile.h"

namespace fourierkv {

// The attention of Llama-3.1-8B; one layer.
inline constexpr int kBenchQueryHeads = 32;
inline constexpr int kBenchKvHeads = 8;
inline constexpr int kBenchHeadDim = 128;
inline constexpr int kBenchSegmentTokens = 256;
inline constexpr int kBenchPageTokens = 64;
inline constexpr int kBenchSinkTokens = 256;
inline constexpr int kBenchRecentTokens = 1024;

// The profile's name in a case without compact segments: all tokens are pages of bf16.
inline constexpr char kPlainDense[] = "plain-dense";

// One row of the table: `batch` sequences of `tokens` tokens of context each.
struct AttentionCase {
  int batch = 1;
  int tokens = 4096;    // a multiple of kBenchSegmentTokens
  std::string profile;  // of AttentionProfileNames(), or kPlainDense
  bool exact = false;   // sink and recent window are pages, what lies between is compact

  bool operator==(const AttentionCase&) const = default;

  // "32x32k:int4-9.7x+exact"
  std::string Name() const;
  // Of one sequence.
  int64_t segments() const;
  int64_t pages() const;
  // K and V of all sequences if they were bf16.
  int64_t DenseBytes() const;
};

// "bf16", "int8", "int4-9.7x", "int4-15x".
const std::vector<std::string>& AttentionProfileNames();

// One layer of the profile with this name. NotFound, listing the names there are.
//   bf16       K 80% V 80% spectral with 8 coefficients; everything in 16 bits
//   int8       the same with 8 bits for coefficients and residents
//   int4-9.7x  K 80% V 50%, coefficients 8 bits, residents 4
//   int4-15x   K 80% V 80% of rotated columns, coefficients 8 bits, residents 4
absl::StatusOr<CodecProfile> AttentionProfile(absl::string_view name);

// The inverse of AttentionCase::Name(). InvalidArgument saying what is wrong with it: at most 4096
// sequences, 2^20 tokens each, 2^28 in all.
absl::StatusOr<AttentionCase> ParseAttentionCase(absl::string_view text);

// Profile after profile, plain dense first; of each every size, with and without exact regions.
// `quick`: four sizes instead of twelve.
std::vector<AttentionCase> StandardAttentionCases(bool quick);

}  // namespace fourierkv
