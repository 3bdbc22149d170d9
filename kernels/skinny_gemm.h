// Products of a large bf16 matrix with few rows, as decoding has them: bound by reading the matrix.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fourierkv::kernels {

inline constexpr int kSkinnyGemmRows = 64;  // at most

enum class SkinnyGemmOutput : int32_t {
  kBf16,      // y[rows][out], bf16
  kFloat,     // y[rows][out], float
  kAddFloat,  // added to y[rows][out], float
  // y[rows][out / 2], bf16: silu(g) u, where g is the first half of a row of the product, and u the
  // second
  kSiluMul,
};

struct SkinnyGemmParams {
  const uint16_t* w;  // bf16 [out][in]
  const uint16_t* x;  // bf16 [rows][in]
  void* y;            // x w^T, as `output` says
  int64_t out;        // a multiple of 16
  int64_t in;         // a multiple of 8
  int32_t rows;       // 1 to kSkinnyGemmRows
  SkinnyGemmOutput output;
  void* workspace;  // SkinnyGemmWorkspace() bytes, zeros before the first product
  int64_t workspace_bytes;
};

// Whether LaunchSkinnyGemm takes these sizes, on a device that it runs on.
bool SkinnyGemmFits(int64_t out, int64_t in, int64_t rows);

// Bytes of workspace on the current device, for all sizes; 0 if the kernel does not run on it: it
// is for compute capability 9.0. Workspace may be shared by products that run one after another.
int64_t SkinnyGemmWorkspace();

// Enqueues the product. Sums are float, in an order that depends on the sizes and on the device's
// number of multiprocessors only. Starts to read w before the kernel before it has ended, if that
// allows it (dependent_launch.cuh): w must not be written by one still running. Pointers are to
// device memory, 16-byte aligned. With nothing enqueued, cudaErrorInvalidValue for null or
// misaligned pointers, too little workspace and sizes that do not fit, and cudaErrorNotSupported on
// another device than SkinnyGemmWorkspace says; otherwise what the runtime reports.
cudaError_t LaunchSkinnyGemm(const SkinnyGemmParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
