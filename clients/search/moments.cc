#include "clients/search/moments.h"

#include <cblas.h>

#include <cstddef>

namespace fourierkv {

void AddFirstMoment(const float* x, int n, int dim, std::vector<double>* to) {
  for (int t = 0; t < n; ++t) {
    for (int d = 0; d < dim; ++d) (*to)[d] += x[static_cast<size_t>(t) * dim + d];
  }
}

void AddSecondMoment(const float* x, int n, int dim, std::vector<double>* to) {
  std::vector<float> product(static_cast<size_t>(dim) * dim);
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, dim, dim, n, 1.0f, x, dim, x, dim, 0.0f,
              product.data(), dim);
  for (size_t i = 0; i < product.size(); ++i) (*to)[i] += product[i];
}

}  // namespace fourierkv
