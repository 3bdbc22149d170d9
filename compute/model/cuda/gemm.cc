#include "compute/model/cuda/gemm.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "kernels/skinny_gemm.h"

namespace fourierkv {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLAS recommends for Hopper

absl::Status CublasStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cublasLtGetStatusString(status));
  if (status == CUBLAS_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError(message);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return absl::UnimplementedError(message);
  return absl::InternalError(message);
}

kernels::SkinnyGemmOutput SkinnyOutput(GemmOutput output) {
  switch (output) {
    case GemmOutput::kBf16:
      return kernels::SkinnyGemmOutput::kBf16;
    case GemmOutput::kFloat:
      return kernels::SkinnyGemmOutput::kFloat;
    case GemmOutput::kAddFloat:
      return kernels::SkinnyGemmOutput::kAddFloat;
    case GemmOutput::kSiluMul:
      return kernels::SkinnyGemmOutput::kSiluMul;
  }
  return kernels::SkinnyGemmOutput::kFloat;
}

}  // namespace

// cuBLAS is column-major: what it computes is y^T [out][rows] = w x^T, with w given transposed.
struct Gemm::Plan {
  Plan() = default;
  ~Plan() {
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {w, x, y}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  absl::Status Describe(const GemmShape& shape) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cudaDataType type = shape.output == GemmOutput::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
    const auto rows = static_cast<uint64_t>(shape.rows);
    beta = shape.output == GemmOutput::kAddFloat ? 1.0f : 0.0f;
    cublasStatus_t status = cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                              sizeof(transposed));
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = cublasLtMatrixLayoutCreate(&w, CUDA_R_16BF, shape.in, shape.out, shape.in);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = cublasLtMatrixLayoutCreate(&x, CUDA_R_16BF, shape.in, rows, shape.in);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = cublasLtMatrixLayoutCreate(&y, type, shape.out, rows, shape.out);
    }
    return CublasStatus(status, "describing a matrix product");
  }

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  float beta = 0;
  cublasLtMatmulAlgo_t algorithm = {};
};

Gemm::Gemm(cublasLtHandle_t handle, DeviceBuffer workspace, DeviceBuffer skinny_workspace)
    : handle_(handle),
      workspace_(std::move(workspace)),
      skinny_workspace_(std::move(skinny_workspace)) {}

Gemm::~Gemm() { cublasLtDestroy(handle_); }

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Create(bool skinny) {
  absl::StatusOr<DeviceBuffer> workspace = DeviceBuffer::Create(kWorkspaceBytes);
  if (!workspace.ok()) return workspace.status();
  const int64_t skinny_bytes = skinny ? kernels::SkinnyGemmWorkspace() : 0;
  absl::StatusOr<DeviceBuffer> skinny_workspace =
      DeviceBuffer::Create(static_cast<size_t>(skinny_bytes));
  if (!skinny_workspace.ok()) return skinny_workspace.status();
  if (skinny_bytes > 0) {
    cudaError_t error = cudaMemset(skinny_workspace->data(), 0, skinny_workspace->size());
    if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);
    if (absl::Status s = CudaStatus(error, "clearing workspace"); !s.ok()) return s;
  }
  cublasLtHandle_t handle = nullptr;
  if (absl::Status s = CublasStatus(cublasLtCreate(&handle), "starting cuBLAS"); !s.ok()) return s;
  return std::unique_ptr<Gemm>(
      new Gemm(handle, *std::move(workspace), *std::move(skinny_workspace)));
}

bool Gemm::IsSkinny(const GemmShape& shape) {
  return kernels::SkinnyGemmFits(shape.out, shape.in, shape.rows);
}

bool Gemm::UsesSkinny(const GemmShape& shape) const {
  return skinny_workspace_.size() > 0 && IsSkinny(shape);
}

absl::Status Gemm::Prepare(const GemmShape& shape) {
  if (UsesSkinny(shape) || plans_.contains(shape)) return absl::OkStatus();
  const std::string what =
      absl::StrCat("a product of ", shape.rows, " rows of ", shape.in, " with ", shape.out);
  if (shape.output == GemmOutput::kSiluMul) {
    return absl::UnimplementedError(absl::StrCat(what, ": only few rows can be activated at once"));
  }
  auto plan = std::make_unique<Plan>();
  if (absl::Status s = plan->Describe(shape); !s.ok()) return s;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulHeuristicResult_t proposal;
  int found = 0;
  cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);
  if (status == CUBLAS_STATUS_SUCCESS) {
    status =
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kWorkspaceBytes, sizeof(kWorkspaceBytes));
  }
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatmulAlgoGetHeuristic(handle_, plan->operation, plan->w, plan->x, plan->y,
                                            plan->y, preference, 1, &proposal, &found);
  }
  if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
  if (status == CUBLAS_STATUS_SUCCESS && found == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
  if (absl::Status s = CublasStatus(status, what); !s.ok()) return s;
  plan->algorithm = proposal.algo;
  plans_.emplace(shape, std::move(plan));
  return absl::OkStatus();
}

absl::Status Gemm::Run(const GemmShape& shape, const uint16_t* w, const uint16_t* x, void* y,
                       cudaStream_t stream) {
  if (UsesSkinny(shape)) {
    const kernels::SkinnyGemmParams params = {w,
                                              x,
                                              y,
                                              shape.out,
                                              shape.in,
                                              shape.rows,
                                              SkinnyOutput(shape.output),
                                              skinny_workspace_.data(),
                                              static_cast<int64_t>(skinny_workspace_.size())};
    return CudaStatus(kernels::LaunchSkinnyGemm(params, stream), "enqueueing a matrix product");
  }
  if (absl::Status s = Prepare(shape); !s.ok()) return s;
  const Plan& plan = *plans_.find(shape)->second;
  const float alpha = 1;
  return CublasStatus(
      cublasLtMatmul(handle_, plan.operation, &alpha, w, plan.w, x, plan.x, &plan.beta, y, plan.y,
                     y, plan.y, &plan.algorithm, workspace_.data(), workspace_.size(), stream),
      "enqueueing a matrix product");
}

}  // namespace fourierkv
