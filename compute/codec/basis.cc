#include "compute/codec/basis.h"

#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPadding = kAlignment / sizeof(float);

const float* AlignUp(const float* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return pointer + ((kAlignment - address % kAlignment) % kAlignment) / sizeof(float);
}

}  // namespace

const char* BasisName(BasisKind kind) {
  switch (kind) {
    case BasisKind::kDct2:
      return "dct2";
    case BasisKind::kDft:
      return "dft";
    case BasisKind::kMean:
      return "mean";
  }
  return "unknown";
}

absl::StatusOr<BasisKind> ParseBasisKind(absl::string_view name) {
  for (BasisKind kind : {BasisKind::kDct2, BasisKind::kDft, BasisKind::kMean}) {
    if (name == BasisName(kind)) return kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("basis '", name, "' is unknown; it must be dct2, dft or mean"));
}

double BasisValue(BasisKind kind, int segment_tokens, int m, int t) {
  using std::numbers::pi;
  const double rows = segment_tokens;
  if (m == 0) return std::sqrt(1 / rows);
  if (kind == BasisKind::kMean) return 0;
  if (kind == BasisKind::kDct2) return std::sqrt(2 / rows) * std::cos(pi * (t + 0.5) * m / rows);
  const int k = (m + 1) / 2;
  // Reducing k t modulo S in integers keeps the angle, hence the column, accurate.
  const double angle = 2 * pi * ((static_cast<int64_t>(k) * t) % segment_tokens) / rows;
  const double norm = std::sqrt((2 * k == segment_tokens ? 1 : 2) / rows);
  return norm * (m % 2 == 1 ? std::cos(angle) : std::sin(angle));
}

Basis::Basis(BasisKind kind, int segment_tokens, int columns)
    : kind_(kind),
      segment_tokens_(segment_tokens),
      columns_(columns),
      storage_(static_cast<size_t>(segment_tokens) * columns + kPadding),
      by_column_(AlignUp(storage_.data())),
      by_row_(static_cast<size_t>(segment_tokens) * columns) {
  float* out = storage_.data() + (by_column_ - storage_.data());
  for (int m = 0; m < columns; ++m) {
    for (int t = 0; t < segment_tokens; ++t) {
      const float value = static_cast<float>(BasisValue(kind, segment_tokens, m, t));
      *out++ = value;
      by_row_[static_cast<size_t>(t) * columns + m] = value;
    }
  }
}

}  // namespace fourierkv
