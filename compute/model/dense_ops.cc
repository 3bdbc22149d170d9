#include "compute/model/dense_ops.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>

namespace fourierkv {
namespace {

// Below so many multiply-adds waking threads takes longer than the work.
constexpr int64_t kInlineWork = 200'000;
constexpr int64_t kMinRows = 16;  // of a piece; fewer starve the matrix kernels

// OpenBLAS must not start threads of its own beside the pool's.
void UseOneBlasThread() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
}

void Gemm(const float* x, int64_t n, int64_t in, const float* w, int64_t out, float* y,
          int64_t y_stride, bool accumulate) {
  const float beta = accumulate ? 1.0f : 0.0f;
  if (n == 1) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, static_cast<int>(out), static_cast<int>(in), 1.0f, w,
                static_cast<int>(in), x, 1, beta, y, 1);
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(n), static_cast<int>(out),
              static_cast<int>(in), 1.0f, x, static_cast<int>(in), w, static_cast<int>(in), beta, y,
              static_cast<int>(y_stride));
}

// Pieces of `total`, about two per thread so that a slow thread does not hold up the others.
int64_t PieceSize(const ThreadPool& pool, int64_t total, int64_t minimum) {
  const int64_t pieces = 2 * static_cast<int64_t>(pool.threads());
  return std::max(minimum, (total + pieces - 1) / pieces);
}

void ForPieces(ThreadPool& pool, int64_t total, int64_t piece,
               const std::function<void(int64_t, int64_t)>& body) {
  pool.ParallelFor((total + piece - 1) / piece, [&](int64_t i, int) {
    const int64_t first = i * piece;
    body(first, std::min(piece, total - first));
  });
}

}  // namespace

void ForRows(ThreadPool& pool, int64_t rows, const std::function<void(int64_t, int64_t)>& body) {
  if (rows <= kMinRows) return body(0, rows);
  ForPieces(pool, rows, PieceSize(pool, rows, kMinRows), body);
}

void MatMul(ThreadPool& pool, const float* x, int64_t n, int64_t in, const float* w, int64_t out,
            float* y, bool accumulate) {
  UseOneBlasThread();
  if (n * in * out <= kInlineWork || pool.threads() == 1)
    return Gemm(x, n, in, w, out, y, out, accumulate);
  if (n >= kMinRows * pool.threads()) {
    ForPieces(pool, n, PieceSize(pool, n, kMinRows), [&](int64_t first, int64_t count) {
      Gemm(x + first * in, count, in, w, out, y + first * out, out, accumulate);
    });
    return;
  }
  ForPieces(pool, out, PieceSize(pool, out, 32), [&](int64_t first, int64_t count) {
    Gemm(x, n, in, w + first * in, count, y + first, out, accumulate);
  });
}

void RmsNorm(ThreadPool& pool, const float* x, int64_t n, int64_t size, const float* weight,
             double eps, float* y) {
  ForRows(pool, n, [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      const float* in = x + i * size;
      float* out = y + i * size;
      double sum = 0;
      for (int64_t d = 0; d < size; ++d) sum += static_cast<double>(in[d]) * in[d];
      const float scale =
          static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(size) + eps));
      for (int64_t d = 0; d < size; ++d) out[d] = in[d] * scale * weight[d];
    }
  });
}

void SiluMul(ThreadPool& pool, int64_t n, int64_t size, const float* up, float* gate) {
  ForRows(pool, n, [&](int64_t first, int64_t count) {
    for (int64_t i = first * size; i < (first + count) * size; ++i) {
      gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    }
  });
}

}  // namespace fourierkv
