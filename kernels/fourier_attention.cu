#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/dependent_launch.cuh"
#include "kernels/fourier_attention.h"
#include "kernels/fourier_attention_kernel.cuh"

namespace fourierkv::kernels {
namespace {

int64_t AlignUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Of each of a block's workers.
int WorkerWarps(const AttentionPlanView& plan) {
  return plan.uniform_bits != 0 ? 1 : kAttentionWarps;
}

// Bulk copies to a place that is not so aligned are slower.
constexpr int kCopyAlign = 128;

SharedLayout LayOut(const AttentionPlanView& plan, int heads_per_kv) {
  const int page_blocks = (plan.head_dim + 63) / 64;
  const int page_query_bytes = 2048 * page_blocks;
  const int slots = kSlots * plan.slot_bytes;
  const int warps = WorkerWarps(plan);
  SharedLayout layout = {};
  layout.log_lanes = heads_per_kv <= 4 ? 4 : 5;
  layout.small_k = slots;
  layout.small_v = layout.small_k + static_cast<int>(AlignUp(plan.k_small_bytes, 16));
  const int page_outputs = 4 * page_blocks << (layout.log_lanes + 4);
  if (plan.uniform_bits != 0) {
    const int tiles = heads_per_kv > kTileHeads ? 2 : 1;
    // Of 8 and 16 bits there is so much that K and V take turns; but not if K is needed for more
    // heads.
    const bool in_turn = plan.uniform_bits >= 8 && heads_per_kv <= kTileHeads;
    if (!in_turn) layout.uniform_v = static_cast<int>(AlignUp(plan.k_uniform_bytes, kCopyAlign));
    const int parts = std::max(plan.k_uniform_bytes, layout.uniform_v + plan.v_uniform_bytes);
    layout.page_queries = slots;
    layout.outputs = std::max(static_cast<int>(AlignUp(parts, 16)), slots + page_query_bytes);
    layout.warp_bytes = static_cast<int>(
        AlignUp(layout.outputs + std::max(page_outputs, tiles * plan.v_output_bytes), 16));
    layout.queries = layout.warp_bytes;
    // Results are put together there, too.
    layout.norms = layout.queries + tiles * std::max(plan.k_query_bytes, 16 * plan.head_dim);
    layout.stats = layout.norms + 32;
    layout.program = layout.stats + 64;
    const int bytes = static_cast<int>(layout.program + AlignUp(2 * sizeof(UniformPart), 16));
    // The second warp of a team gives what results need beside.
    layout.worker_bytes =
        static_cast<int>(AlignUp(std::max(bytes, kTurnedScratchBytes), kCopyAlign));
    return layout;
  }
  layout.queries = static_cast<int>(AlignUp(plan.program_bytes, 16));
  layout.page_queries = layout.queries;
  layout.norms = layout.queries + std::max(512 * plan.k_chunks, page_query_bytes);
  layout.stats = layout.norms + 32;
  layout.warps = static_cast<int>(AlignUp(layout.stats + 64 * warps, 16));
  layout.outputs = layout.small_v + static_cast<int>(AlignUp(plan.v_small_bytes, 16));
  layout.warp_bytes = static_cast<int>(AlignUp(
      layout.outputs + std::max(page_outputs, plan.v_chunks << (layout.log_lanes + 4)), 16));
  layout.worker_bytes = layout.warps + warps * layout.warp_bytes;
  return layout;
}

// Dynamic shared memory of a block.
int SharedBytes(const AttentionPlanView& plan, const SharedLayout& layout) {
  return kAttentionWarps / WorkerWarps(plan) * layout.worker_bytes;
}

// So many counters of groups have a place of their own in every workspace, whatever else a launch
// keeps there. Launches that need more set theirs to zero first.
constexpr int64_t kOwnCounters = 16384;

// Parts of the workspace, in bytes: workers' counters, then ...
struct WorkspaceLayout {
  int64_t group_counters;
  int64_t rotated_queries;  // f32[batch][query_heads][head_dim]
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
  layout.group_counters = AlignUp(4 * kMaxWorkers, 256);
  layout.rotated_queries = layout.group_counters + AlignUp(4 * std::max(groups, kOwnCounters), 256);
  layout.records = layout.rotated_queries;
  if (plan.k_rotated != 0) {
    layout.records += AlignUp(int64_t{4} * batch * query_heads * plan.head_dim, 256);
  }
  layout.record_floats = RecordFloats(std::max(plan.v_chunks, 4 * page_blocks));
  layout.total = layout.records + 4 * layout.record_floats * (kMaxWorkers + 2 * groups);
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

int UnitsPerSegment(const AttentionPlanView& plan) {
  return std::max(1, plan.segment_tokens / kUnitTokens);
}

bool ValidPlan(const AttentionPlanView& plan) {
  return Aligned(plan.data, 16) && plan.segment_cost >= 1 && plan.page_cost >= 1 &&
         (plan.segment_tokens == 128 || plan.segment_tokens == 256 || plan.segment_tokens == 512 ||
          plan.segment_tokens == 1024);
}

bool ValidType(ElementType type) {
  return type == ElementType::kBf16 || type == ElementType::kFp16;
}

// Whether the schedule was made for such a launch.
bool ValidSchedule(const FourierAttentionParams& params) {
  const AttentionScheduleShape& shape = params.schedule.shape;
  const int64_t bytes = AttentionScheduleBytes(shape);
  return bytes >= 0 && params.schedule.bytes >= bytes && Aligned(params.schedule.data, 16) &&
         shape.batch == params.batch && shape.kv_heads == params.plan.kv_heads &&
         shape.query_heads == params.query_heads &&
         shape.units_per_segment == UnitsPerSegment(params.plan) &&
         shape.worker_warps == WorkerWarps(params.plan);
}

bool Valid(const FourierAttentionParams& params) {
  const AttentionPlanView& plan = params.plan;
  return ValidSizes(plan, params.batch, params.query_heads) && ValidPlan(plan) &&
         ValidSchedule(params) && (params.segments != nullptr || params.pages != nullptr) &&
         ValidType(params.dtype) && params.scale > 0 && std::isfinite(params.scale) &&
         Aligned(params.q, 16) && Aligned(params.out, 16) && MaybeAligned(params.lse, 4) &&
         MaybeAligned(params.segments, 8) && MaybeAligned(params.pages, 8) &&
         params.page_head_stride >= 0 && params.page_head_stride % 8 == 0 &&
         Aligned(params.workspace, 256);
}

// What a block may have of it on `device`: what there is, less than 1 KiB for the kernel's own.
cudaError_t SharedLimit(int device, int* bytes) {
  const cudaError_t status =
      cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes -= 1024;
  return status;
}

AttentionKernel KernelOf(const AttentionPlanView& plan, ElementType type) {
  if (plan.uniform_bits != 0) return UniformKernel(type, plan.uniform_bits);
  return type == ElementType::kBf16 ? Bf16Kernel(plan) : Fp16Kernel(plan);
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

cudaError_t FourierAttentionShape(const AttentionPlanView& plan, int32_t batch, int32_t query_heads,
                                  ElementType dtype, AttentionScheduleShape* shape) {
  if (!ValidSizes(plan, batch, query_heads) || !ValidPlan(plan) || !ValidType(dtype)) {
    return cudaErrorInvalidValue;
  }
  int device = 0, processors = 0, limit = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  status = SharedLimit(device, &limit);
  if (status != cudaSuccess) return status;
  const int shared = SharedBytes(plan, LayOut(plan, query_heads / plan.kv_heads));
  if (shared > limit) return cudaErrorInvalidConfiguration;
  // The limit is the kernel's, for all its launches: always the same, and never too small for one.
  const AttentionKernel kernel = KernelOf(plan, dtype);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  if (status != cudaSuccess) return status;
  int blocks = 0;
  status =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kAttentionThreads, shared);
  if (status != cudaSuccess) return status;
  if (blocks < 1) return cudaErrorInvalidConfiguration;
  const int workers = kAttentionWarps / WorkerWarps(plan);  // of a block
  *shape = {};
  shape->batch = batch;
  shape->kv_heads = plan.kv_heads;
  shape->query_heads = query_heads;
  shape->units_per_segment = UnitsPerSegment(plan);
  shape->worker_warps = WorkerWarps(plan);
  shape->processors = std::min(processors, kMaxWorkers / kAttentionWarps);
  blocks = std::min(blocks, kMaxWorkers / kAttentionWarps / shape->processors);
  shape->workers = blocks * shape->processors * workers;
  shape->unit_cost = std::min(plan.segment_cost, kMaxCost);
  shape->page_cost = std::min(plan.page_cost, kMaxCost);
  return cudaSuccess;
}

cudaError_t LaunchFourierAttention(const FourierAttentionParams& params, cudaStream_t stream) {
  if (!Valid(params)) return cudaErrorInvalidValue;
  const AttentionPlanView& plan = params.plan;
  const WorkspaceLayout workspace = LayOutWorkspace(plan, params.batch, params.query_heads);
  if (params.workspace_bytes < workspace.total) return cudaErrorInvalidValue;
  int device = 0, major = 0, limit = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return status;
  if (major < 8) return cudaErrorNotSupported;

  auto* const base = static_cast<uint8_t*>(params.workspace);
  const int heads_per_kv = params.query_heads / plan.kv_heads;
  KernelParams kernel_params = {};
  kernel_params.user = params;
  kernel_params.shared = LayOut(plan, heads_per_kv);
  kernel_params.entries = static_cast<const AttentionEntry*>(params.schedule.data);
  kernel_params.workers = params.schedule.shape.workers;
  kernel_params.groups = GroupsOf(params.query_heads, plan.kv_heads);
  kernel_params.units_per_segment = UnitsPerSegment(plan);
  kernel_params.log_tokens = plan.segment_tokens == 128   ? 7
                             : plan.segment_tokens == 256 ? 8
                             : plan.segment_tokens == 512 ? 9
                                                          : 10;
  kernel_params.record_floats = workspace.record_floats;
  kernel_params.worker_counters = reinterpret_cast<int32_t*>(base);
  kernel_params.group_counters = reinterpret_cast<int32_t*>(base + workspace.group_counters);
  kernel_params.records = reinterpret_cast<float*>(base + workspace.records);

  const AttentionKernel kernel = KernelOf(plan, params.dtype);
  status = SharedLimit(device, &limit);
  if (status != cudaSuccess) return status;
  const int shared = SharedBytes(plan, kernel_params.shared);
  if (shared > limit) return cudaErrorInvalidConfiguration;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  if (status != cudaSuccess) return status;
  const int64_t counters = static_cast<int64_t>(params.batch) * kernel_params.groups;
  if (counters > kOwnCounters) {
    status = cudaMemsetAsync(kernel_params.group_counters, 0, 4 * counters, stream);
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
  const int workers = kAttentionWarps / WorkerWarps(plan);  // of a block
  const int grid = (kernel_params.workers + workers - 1) / workers;
  const bool early = params.early_launch && major >= 9 && plan.k_rotated == 0;
  return LaunchDependentIf(early, kernel, grid, kAttentionThreads, shared, stream, kernel_params);
}

}  // namespace fourierkv::kernels
