// Entropy coding of the integers of an archived part. docs/format.md describes the code.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "compute/codec/archive_profile.h"

namespace fourierkv {

// The integers of one part: `values` [channels][blocks][kArchiveBlock], channels of all heads after
// one another, frequencies innermost. `classes` as ArchiveHead::classes, of all these channels.
struct ArchiveSymbolShape {
  int channels = 0;
  int blocks = 0;
  std::span<const uint8_t> classes;  // [channels][kArchiveOctaves]

  size_t size() const { return static_cast<size_t>(channels) * blocks * kArchiveBlock; }
};

inline constexpr int kArchiveLargest = 32767;  // magnitude of an integer

// Contexts of one part; ArchiveProfile::probabilities has those of K, then those of V.
extern const int kArchiveContexts;

// Appends the code to `out`. `probabilities`: kArchiveContexts, each within AdaptiveBit's bounds.
// Requires |value| <= kArchiveLargest.
void EncodeArchiveSymbols(const ArchiveSymbolShape& shape, std::span<const uint16_t> probabilities,
                          std::span<const int16_t> values, std::vector<std::byte>* out);

// Sets all of `values`. DataLoss if `code` is not exactly what an encoder wrote; whatever it holds,
// the work is bounded by the shape and every magnitude by kArchiveLargest.
absl::Status DecodeArchiveSymbols(const ArchiveSymbolShape& shape,
                                  std::span<const uint16_t> probabilities,
                                  std::span<const std::byte> code, std::span<int16_t> values);

// How often bits were 0 and 1 in each context.
struct ArchiveBitCounts {
  uint32_t zeros = 0;
  uint32_t ones = 0;
};

// Adds what encoding `values` would code to `counts` [kArchiveContexts].
void CountArchiveSymbols(const ArchiveSymbolShape& shape, std::span<const int16_t> values,
                         std::span<ArchiveBitCounts> counts);

// The probabilities that describe such counts best, drawn to 1/2 where there are few.
std::vector<uint16_t> ProbabilitiesFromCounts(std::span<const ArchiveBitCounts> counts);

}  // namespace fourierkv
