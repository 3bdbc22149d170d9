// What a search may do to a channel.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/codec/basis.h"

namespace fourierkv {

// As in Band: M coefficients of `bits` bits, or values of `bits` bits if `coefficients` is 0.
struct Representation {
  int coefficients = 0;
  int bits = 0;
  bool operator==(const Representation&) const = default;
};

// Bits per value of a channel in segments of S tokens, scales and offsets included.
double BitsPerValue(const Representation& representation, int segment_tokens);

// "M8", "M1x16" (bf16 coefficients) and "int4" or "bf16".
std::string RepresentationName(const Representation& representation);

// Names separated by commas; InvalidArgument for an unknown one, or coefficients that `basis` or
// segments of S tokens do not have. Each once, cheapest first.
absl::StatusOr<std::vector<Representation>> ParseRepresentations(absl::string_view names,
                                                                 BasisKind basis,
                                                                 int segment_tokens);

// Everything a search chooses from unless told otherwise.
inline constexpr char kDefaultRepresentations[] = "M1x16,M2,M4,M8,M16,M32,int2,int3,int4,int8,bf16";

}  // namespace fourierkv
