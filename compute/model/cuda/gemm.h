// Matrix products on the GPU: bf16 operands, float sums (cuBLASLt).

#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"

namespace fourierkv {

enum class GemmOutput { kBf16, kFloat, kAddFloat };

// y[rows][out] = x[rows][in] w[out][in]^T, all row-major; kAddFloat adds it to what y holds.
struct GemmShape {
  int64_t out = 0;
  int64_t in = 0;
  int rows = 0;
  GemmOutput output = GemmOutput::kBf16;

  auto operator<=>(const GemmShape&) const = default;
};

// One at a time of its products may run: they share workspace. One thread.
class Gemm {
 public:
  static absl::StatusOr<std::unique_ptr<Gemm>> Create();
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // Chooses how to compute products of `shape`, if that has not been done: Run does so by itself,
  // but not while a graph is captured. By default cuBLAS's first proposal is taken. With `weights`
  // its best proposals are timed, on each of these matrices in turn so that they come from memory
  // as they do when a model runs; x and y are then scratch of the right sizes.
  //
  // Unimplemented if cuBLAS has no algorithm for the shape.
  absl::Status Prepare(const GemmShape& shape) { return Choose(shape, {}, nullptr, nullptr); }
  absl::Status Tune(const GemmShape& shape, std::span<const uint16_t* const> weights,
                    const uint16_t* x, void* y) {
    return Choose(shape, weights, x, y);
  }

  // Enqueues the product. Pointers are to device memory, 256-byte aligned.
  absl::Status Run(const GemmShape& shape, const uint16_t* w, const uint16_t* x, void* y,
                   cudaStream_t stream);

 private:
  struct Plan;

  Gemm(cublasLtHandle_t handle, DeviceBuffer workspace);
  absl::Status Choose(const GemmShape& shape, std::span<const uint16_t* const> weights,
                      const uint16_t* x, void* y);
  absl::Status Enqueue(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const uint16_t* w,
                       const uint16_t* x, void* y, cudaStream_t stream) const;
  // Seconds that `algorithm` takes for one product.
  absl::StatusOr<double> Time(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
                              std::span<const uint16_t* const> weights, const uint16_t* x,
                              void* y) const;

  const cublasLtHandle_t handle_;
  const DeviceBuffer workspace_;
  std::map<GemmShape, std::unique_ptr<Plan>> plans_;
};

}  // namespace fourierkv
