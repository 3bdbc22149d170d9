// The few dense operations of a transformer on float rows.

#pragma once

#include <cstdint>
#include <functional>

#include "compute/base/thread_pool.h"

namespace fourierkv {

// body(first, count) over [0, rows) in pieces, on all threads of the pool.
void ForRows(ThreadPool& pool, int64_t rows, const std::function<void(int64_t, int64_t)>& body);

// y[n][out] = x[n][in] w[out][in]^T, added to what y holds if `accumulate`. OpenBLAS on one thread
// per piece: rows are split over the pool, or columns where there are few rows.
void MatMul(ThreadPool& pool, const float* x, int64_t n, int64_t in, const float* w, int64_t out,
            float* y, bool accumulate = false);

// y = x / sqrt(mean(x^2) + eps) * weight for each of n rows.
void RmsNorm(ThreadPool& pool, const float* x, int64_t n, int64_t size, const float* weight,
             double eps, float* y);

// gate = silu(gate) * up, elementwise on n rows.
void SiluMul(ThreadPool& pool, int64_t n, int64_t size, const float* up, float* gate);

}  // namespace fourierkv
