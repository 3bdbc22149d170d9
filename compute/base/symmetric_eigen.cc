#include "compute/base/symmetric_eigen.h"

#include <cmath>
#include <cstddef>

#include "absl/strings/str_cat.h"

// LAPACK, which OpenBLAS contains: eigenvalues in increasing order, eigenvectors as columns of a
// column-major matrix.
extern "C" void dsyevd_(const char* jobz, const char* uplo, const int* n, double* a, const int* lda,
                        double* w, double* work, const int* lwork, int* iwork, const int* liwork,
                        int* info, size_t jobz_length, size_t uplo_length);

namespace fourierkv {

absl::StatusOr<SymmetricEigen> EigenOfSymmetric(std::span<const double> matrix, int n) {
  if (n < 1 || n > (1 << 15) || matrix.size() != static_cast<size_t>(n) * n) {
    return absl::InvalidArgumentError(
        absl::StrCat("a matrix of ", matrix.size(), " values is not ", n, " x ", n));
  }
  std::vector<double> a(matrix.begin(), matrix.end());
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) {
      if (!std::isfinite(a[static_cast<size_t>(i) * n + j])) {
        return absl::InvalidArgumentError(
            absl::StrCat("matrix[", i, "][", j, "] is not a finite number"));
      }
    }
  }
  std::vector<double> w(n);
  int info = 0, lwork = -1, liwork = -1, iwork_size = 0;
  double work_size = 0;
  // Row-major lower is column-major upper.
  dsyevd_("V", "U", &n, a.data(), &n, w.data(), &work_size, &lwork, &iwork_size, &liwork, &info, 1,
          1);
  if (info == 0) {
    lwork = static_cast<int>(work_size);
    liwork = iwork_size;
    std::vector<double> work(lwork);
    std::vector<int> iwork(liwork);
    dsyevd_("V", "U", &n, a.data(), &n, w.data(), work.data(), &lwork, iwork.data(), &liwork, &info,
            1, 1);
  }
  if (info != 0) {
    return absl::InternalError(
        absl::StrCat("eigenvectors of a ", n, " x ", n, " matrix: dsyevd gives ", info));
  }
  SymmetricEigen result{std::vector<double>(n), std::vector<double>(static_cast<size_t>(n) * n)};
  for (int j = 0; j < n; ++j) {
    const int from = n - 1 - j;
    result.values[j] = w[from];
    for (int i = 0; i < n; ++i) {
      result.vectors[static_cast<size_t>(i) * n + j] = a[static_cast<size_t>(from) * n + i];
    }
  }
  return result;
}

}  // namespace fourierkv
