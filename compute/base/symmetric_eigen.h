// Eigenvectors of real symmetric matrices.

#pragma once

#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace fourierkv {

struct SymmetricEigen {
  std::vector<double> values;   // decreasing
  std::vector<double> vectors;  // row-major [n][n]; column j belongs to values[j]; orthonormal
};

// `matrix`: row-major [n][n], of which only the lower triangle is read. InvalidArgument for another
// size or values that are not finite; Internal if LAPACK's dsyevd does not converge.
absl::StatusOr<SymmetricEigen> EigenOfSymmetric(std::span<const double> matrix, int n);

}  // namespace fourierkv
