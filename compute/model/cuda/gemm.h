// Matrix products on the GPU: bf16 operands, float sums.

#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"

namespace fourierkv {

// kSiluMul: y[rows][out / 2] = silu(g) u, of the first and the second half of every row of the
// product.
enum class GemmOutput { kBf16, kFloat, kAddFloat, kSiluMul };

// y[rows][out] = x[rows][in] w[out][in]^T, all row-major; kAddFloat adds it to what y holds.
struct GemmShape {
  int64_t out = 0;
  int64_t in = 0;
  int rows = 0;
  GemmOutput output = GemmOutput::kBf16;

  auto operator<=>(const GemmShape&) const = default;
};

// Few rows are multiplied by a kernel of ours, which reads the matrix as fast as memory gives it;
// others by cuBLAS. One at a time of its products may run: they share workspace. One thread.
class Gemm {
 public:
  // `skinny`: use our kernel. Without it cuBLAS multiplies all, for comparison.
  static absl::StatusOr<std::unique_ptr<Gemm>> Create(bool skinny = true);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // Whether the shape has so few rows, on a device that our kernel runs on. kSiluMul is only for
  // such.
  static bool IsSkinny(const GemmShape& shape);

  // Chooses how to compute products of `shape`. Run does so by itself if that has not been done,
  // but not while a graph is captured. Unimplemented if cuBLAS has no algorithm for the shape.
  absl::Status Prepare(const GemmShape& shape);

  // Enqueues the product. Pointers are to device memory, 256-byte aligned.
  absl::Status Run(const GemmShape& shape, const uint16_t* w, const uint16_t* x, void* y,
                   cudaStream_t stream);

 private:
  struct Plan;

  Gemm(cublasLtHandle_t handle, DeviceBuffer workspace, DeviceBuffer skinny_workspace);
  bool UsesSkinny(const GemmShape& shape) const;

  const cublasLtHandle_t handle_;
  const DeviceBuffer workspace_;
  const DeviceBuffer skinny_workspace_;  // empty: our kernel is not used
  std::map<GemmShape, std::unique_ptr<Plan>> plans_;
};

}  // namespace fourierkv
