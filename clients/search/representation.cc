#include "clients/search/representation.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "compute/codec/profile_limits.h"

namespace fourierkv {
namespace {

constexpr int kScaleBits = 16;  // bf16, as offsets

bool ParseOne(absl::string_view name, Representation* out) {
  if (name == "bf16") {
    *out = {0, 16};
    return true;
  }
  int number = 0;
  if (absl::ConsumePrefix(&name, "int")) {
    *out = {0, 0};
    if (!absl::SimpleAtoi(name, &number)) return false;
    out->bits = number;
    return number == 2 || number == 3 || number == 4 || number == 8;
  }
  if (!absl::ConsumePrefix(&name, "M")) return false;
  out->bits = absl::ConsumeSuffix(&name, "x16") ? 16 : 8;
  if (!absl::SimpleAtoi(name, &number)) return false;
  out->coefficients = number;
  return number >= 1 && number <= profile_limits::kMaxCoefficients;
}

}  // namespace

double BitsPerValue(const Representation& r, int segment_tokens) {
  if (r.coefficients == 0) {
    return r.bits == 16 ? 16 : r.bits + 2.0 * kScaleBits / segment_tokens;
  }
  const int scale = r.bits == 16 ? 0 : kScaleBits;
  return static_cast<double>(scale + r.bits * r.coefficients) / segment_tokens;
}

std::string RepresentationName(const Representation& r) {
  if (r.coefficients == 0) return r.bits == 16 ? "bf16" : absl::StrCat("int", r.bits);
  return absl::StrCat("M", r.coefficients, r.bits == 16 ? "x16" : "");
}

absl::StatusOr<std::vector<Representation>> ParseRepresentations(absl::string_view names,
                                                                 BasisKind basis,
                                                                 int segment_tokens) {
  std::vector<Representation> result;
  for (const absl::string_view name : absl::StrSplit(names, ',')) {
    Representation one;
    if (!ParseOne(name, &one)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", name, "' is no representation; known are int2, int3, int4, int8, bf16, ",
          "and M1 to M", profile_limits::kMaxCoefficients,
          " coefficients of 8 bits, or of 16 as in M1x16"));
    }
    if (one.coefficients > (basis == BasisKind::kMean ? 1 : segment_tokens)) {
      return absl::InvalidArgumentError(absl::StrCat(name, " has more coefficients than the basis ",
                                                     BasisName(basis), " of ", segment_tokens,
                                                     " tokens"));
    }
    if (std::find(result.begin(), result.end(), one) == result.end()) result.push_back(one);
  }
  std::stable_sort(result.begin(), result.end(), [&](const auto& a, const auto& b) {
    return BitsPerValue(a, segment_tokens) < BitsPerValue(b, segment_tokens);
  });
  return result;
}

}  // namespace fourierkv
