#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/dependent_launch.cuh"
#include "kernels/fourier_attention.h"
#include "kernels/fourier_attention_kernel.cuh"

namespace fourierkv::kernels {
namespace {

int64_t AlignUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

SharedLayout LayOut(const AttentionPlanView& plan, int heads_per_kv) {
  const int page_blocks = (plan.head_dim + 63) / 64;
  SharedLayout layout = {};
  layout.queries = static_cast<int>(AlignUp(plan.program_bytes, 16));
  const int tiles = plan.uniform_bits != 0 && heads_per_kv > kTileHeads ? 2 : 1;
  layout.norms = layout.queries + std::max(512 * plan.k_chunks * tiles, 2048 * page_blocks);
  layout.stats = layout.norms + 32;
  layout.warps = static_cast<int>(AlignUp(layout.stats + 64 * kAttentionWarps + 32, 128));
  layout.log_lanes = heads_per_kv <= 4 ? 4 : 5;
  layout.small_k = kSlots * plan.slot_bytes;
  layout.small_v = layout.small_k + static_cast<int>(AlignUp(plan.k_small_bytes, 16));
  layout.outputs = layout.small_v + static_cast<int>(AlignUp(plan.v_small_bytes, 16));
  if (plan.uniform_bits != 0) {
    // Of 8 and 16 bits there is so much that K and V take turns; but not if K is needed for more
    // heads.
    const bool in_turn = plan.uniform_bits >= 8 && heads_per_kv <= kTileHeads;
    if (!in_turn) layout.uniform_v = static_cast<int>(AlignUp(plan.k_uniform_bytes, 128));
    const int parts = std::max(plan.k_uniform_bytes, layout.uniform_v + plan.v_uniform_bytes);
    layout.outputs = std::max(static_cast<int>(AlignUp(parts, 128)),
                              kSlots * plan.slot_bytes);  // which pages use
  }
  // Outputs of uniform heads' coefficients may take one chunk more than there are.
  layout.warp_bytes =
      layout.outputs + (std::max(plan.v_chunks + 1, 4 * page_blocks) << (layout.log_lanes + 4));
  layout.warp_bytes = static_cast<int>(AlignUp(layout.warp_bytes, 128));
  layout.total = layout.warps + kAttentionWarps * layout.warp_bytes;
  return layout;
}

// So many counters have a place of their own in every workspace, whatever else a launch keeps
// there. Launches that need more set theirs to zero first.
constexpr int64_t kOwnCounters = 16384;

// Parts of the workspace, in bytes.
struct WorkspaceLayout {
  int64_t rotated_queries;  // f32[batch][query_heads][head_dim]; the counters are before them
  int64_t records;
  int64_t record_floats;
  int64_t total;
};

int GroupsOf(int query_heads, int kv_heads) {
  const int heads = query_heads / kv_heads;
  return kv_heads * ((heads + kGroupHeads - 1) / kGroupHeads);
}

WorkspaceLayout LayOutWorkspace(const AttentionPlanView& plan, int batch, int query_heads) {
  const int64_t groups = static_cast<int64_t>(batch) * GroupsOf(query_heads, plan.kv_heads);
  const int page_blocks = (plan.head_dim + 63) / 64;
  WorkspaceLayout layout;
  layout.rotated_queries = AlignUp(4 * std::max(groups, kOwnCounters), 256);
  layout.records = layout.rotated_queries;
  if (plan.k_rotated != 0) {
    layout.records += AlignUp(int64_t{4} * batch * query_heads * plan.head_dim, 256);
  }
  layout.record_floats = RecordFloats(std::max(plan.v_chunks, 4 * page_blocks));
  layout.total = layout.records + 4 * layout.record_floats * (2 * kMaxStretches + 2 * groups);
  return layout;
}

// q U of every query head, where K of its head is rotated.
__global__ void RotateQueriesKernel(FourierAttentionParams user, float* rotated) {
  extern __shared__ float q[];
  const int d = user.plan.head_dim;
  const int head = blockIdx.x;
  const int64_t base = (static_cast<int64_t>(blockIdx.y) * user.query_heads + head) * d;
  for (int i = threadIdx.x; i < d; i += blockDim.x) q[i] = LoadInput(user, base + i);
  __syncthreads();
  const int kv_head = head / (user.query_heads / user.plan.kv_heads);
  const auto* program = reinterpret_cast<const HeadProgram*>(user.plan.data + user.plan.programs +
                                                             kv_head * user.plan.program_bytes);
  const uint32_t at = program->k_rotation;
  const auto* u = reinterpret_cast<const float*>(user.plan.data + at);
  for (int j = threadIdx.x; j < d; j += blockDim.x) {
    float sum = at == 0 ? q[j] : 0.0f;
    if (at != 0) {
      for (int i = 0; i < d; ++i) sum = fmaf(q[i], u[i * d + j], sum);
    }
    rotated[base + j] = sum;
  }
}

bool Aligned(const void* pointer, int64_t to) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

bool MaybeAligned(const void* pointer, int64_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

bool ValidSizes(const AttentionPlanView& plan, int32_t batch, int32_t query_heads) {
  return plan.kv_heads >= 1 && plan.kv_heads <= 256 && plan.head_dim >= 8 &&
         plan.head_dim <= kMaxHeadDim && plan.head_dim % 8 == 0 && batch >= 1 && batch <= 65535 &&
         query_heads >= plan.kv_heads && query_heads % plan.kv_heads == 0 &&
         query_heads / plan.kv_heads <= 16;
}

bool Valid(const FourierAttentionParams& params) {
  const AttentionPlanView& plan = params.plan;
  const bool tables = (params.segments == nullptr || params.segment_offsets != nullptr) &&
                      (params.pages == nullptr || params.page_offsets != nullptr) &&
                      (params.segments != nullptr || params.pages != nullptr);
  return ValidSizes(plan, params.batch, params.query_heads) && tables && Aligned(plan.data, 16) &&
         plan.segment_cost >= 1 && plan.page_cost >= 1 &&
         (plan.segment_tokens == 128 || plan.segment_tokens == 256 || plan.segment_tokens == 512 ||
          plan.segment_tokens == 1024) &&
         (params.dtype == ElementType::kBf16 || params.dtype == ElementType::kFp16) &&
         params.scale > 0 && std::isfinite(params.scale) && Aligned(params.q, 4) &&
         Aligned(params.out, 4) && MaybeAligned(params.lse, 4) &&
         MaybeAligned(params.segments, 8) && MaybeAligned(params.segment_offsets, 4) &&
         MaybeAligned(params.pages, 8) && MaybeAligned(params.page_offsets, 4) &&
         params.page_head_stride >= 0 && params.page_head_stride % 8 == 0 &&
         Aligned(params.workspace, 256);
}

// Dynamic shared memory of a block.
int64_t SharedBytes(const AttentionPlanView& plan, const SharedLayout& layout) {
  return std::max<int64_t>(layout.total,
                           layout.warps + MergeSharedBytes(kMaxStretches + 2, plan.head_dim));
}

// What a block may have of it on `device`: what there is, less than 1 KiB for the kernel's own.
cudaError_t SharedLimit(int device, int* bytes) {
  const cudaError_t status =
      cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes -= 1024;
  return status;
}

}  // namespace

int64_t FourierAttentionWorkspace(const AttentionPlanView& plan, int32_t batch,
                                  int32_t query_heads) {
  if (!ValidSizes(plan, batch, query_heads)) return -1;
  int device = 0, limit = 0;
  if (cudaGetDevice(&device) != cudaSuccess || SharedLimit(device, &limit) != cudaSuccess) {
    return -1;
  }
  if (SharedBytes(plan, LayOut(plan, query_heads / plan.kv_heads)) > limit) return -1;
  return LayOutWorkspace(plan, batch, query_heads).total;
}

cudaError_t LaunchFourierAttention(const FourierAttentionParams& params, cudaStream_t stream) {
  if (!Valid(params)) return cudaErrorInvalidValue;
  const AttentionPlanView& plan = params.plan;
  const WorkspaceLayout workspace = LayOutWorkspace(plan, params.batch, params.query_heads);
  if (params.workspace_bytes < workspace.total) return cudaErrorInvalidValue;
  int device = 0, major = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return status;
  if (major < 8) return cudaErrorNotSupported;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;

  auto* const base = static_cast<uint8_t*>(params.workspace);
  const int heads_per_kv = params.query_heads / plan.kv_heads;
  KernelParams kernel_params = {};
  kernel_params.user = params;
  kernel_params.shared = LayOut(plan, heads_per_kv);
  kernel_params.groups_per_head = (heads_per_kv + kGroupHeads - 1) / kGroupHeads;
  kernel_params.units_per_segment = std::max(1, plan.segment_tokens / kUnitTokens);
  kernel_params.log_tokens = plan.segment_tokens == 128   ? 7
                             : plan.segment_tokens == 256 ? 8
                             : plan.segment_tokens == 512 ? 9
                                                          : 10;
  kernel_params.record_floats = workspace.record_floats;
  kernel_params.counters = static_cast<int32_t*>(params.workspace);
  kernel_params.records = reinterpret_cast<float*>(base + workspace.records);

  const AttentionKernel kernel = plan.uniform_bits != 0
                                     ? UniformKernel(params.dtype, plan.uniform_bits)
                                 : params.dtype == ElementType::kBf16 ? Bf16Kernel(plan)
                                                                      : Fp16Kernel(plan);
  // The limit is the kernel's, for all its launches: always the same, and never too small for one.
  int limit = 0;
  status = SharedLimit(device, &limit);
  if (status != cudaSuccess) return status;
  const auto shared = static_cast<int>(SharedBytes(plan, kernel_params.shared));
  if (shared > limit) return cudaErrorInvalidConfiguration;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  if (status != cudaSuccess) return status;
  int blocks = 0;
  status =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kAttentionThreads, shared);
  if (status != cudaSuccess) return status;
  if (blocks < 1) return cudaErrorInvalidConfiguration;
  const int64_t counters = int64_t{params.batch} * GroupsOf(params.query_heads, plan.kv_heads);
  if (counters > kOwnCounters) {
    status = cudaMemsetAsync(params.workspace, 0, 4 * counters, stream);
    if (status != cudaSuccess) return status;
  }
  if (plan.k_rotated != 0) {
    auto* const rotated = reinterpret_cast<float*>(base + workspace.rotated_queries);
    kernel_params.rotated_queries = rotated;
    const dim3 grid(params.query_heads, params.batch);
    RotateQueriesKernel<<<grid, 128, 4 * plan.head_dim, stream>>>(params, rotated);
    status = cudaGetLastError();
    if (status != cudaSuccess) return status;
  }
  const int grid = std::min(blocks * processors, kMaxStretches);
  const bool early = params.early_launch && major >= 9 && plan.k_rotated == 0;
  return LaunchDependentIf(early, kernel, grid, kAttentionThreads, shared, stream, kernel_params);
}

}  // namespace fourierkv::kernels
