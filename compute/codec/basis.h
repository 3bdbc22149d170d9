// Orthonormal bases along time for one segment.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// Values are stored in blob headers' profiles; names are "dct2", "dft", "mean".
enum class BasisKind : uint8_t { kDct2 = 1, kDft = 2, kMean = 3 };

const char* BasisName(BasisKind kind);
// InvalidArgument for an unknown name.
absl::StatusOr<BasisKind> ParseBasisKind(absl::string_view name);

// Column m, row t of the infinite-precision basis of S rows, in float64:
//   dct2: sqrt((m ? 2 : 1) / S) cos(pi (t + 1/2) m / S)
//   dft:  columns 0, 1, 2, 3, 4, ... are the constant, cos 1, sin 1, cos 2, sin 2, ... at frequency
//         k = (m + 1) / 2: sqrt(2 / S) cos(2 pi k t / S) or sin; the constant is sqrt(1 / S), and
//         the cosine at k = S / 2 is scaled by sqrt(1 / S).
//   mean: only column 0, sqrt(1 / S).
// Columns are orthonormal for 0 <= m < S.
double BasisValue(BasisKind kind, int segment_tokens, int m, int t);

// The first M columns of a basis as float, in both orders that kernels read. Immutable.
class Basis {
 public:
  // Requires 1 <= columns <= segment_tokens.
  Basis(BasisKind kind, int segment_tokens, int columns);
  Basis(const Basis&) = delete;  // share it: by_column_ points into storage_
  Basis& operator=(const Basis&) = delete;

  BasisKind kind() const { return kind_; }
  int segment_tokens() const { return segment_tokens_; }
  int columns() const { return columns_; }
  // Column m over tokens: S contiguous floats, 64-byte aligned when S is a multiple of 16.
  const float* column(int m) const {
    return by_column_ + static_cast<int64_t>(m) * segment_tokens_;
  }
  // Row t over columns: M contiguous floats.
  const float* row(int t) const { return by_row_.data() + static_cast<int64_t>(t) * columns_; }

 private:
  BasisKind kind_;
  int segment_tokens_;
  int columns_;
  std::vector<float> storage_;  // by_column_ is the first 64-byte aligned float of it
  const float* by_column_;
  std::vector<float> by_row_;
};

}  // namespace fourierkv
