#include <algorithm>

#include "kernels/sequence_attention.h"
#include "kernels/sequence_plan.h"

namespace fourierkv::kernels {
namespace {

constexpr int kMaxTokens = 1 << 20;
constexpr int kChunkUnit = 256;  // a multiple of every window
constexpr int kItemsPerMultiprocessor = 64;
// Of a row; what they count is kept in shared memory.
constexpr int kMaxMiddleItems = 512;
constexpr int kMaxExactItems = 256;

bool ValidSizes(const SequenceAttentionParams& p) {
  return p.batch >= 1 && p.batch <= 65535 && p.kv_heads >= 1 && p.kv_heads <= 256 &&
         p.query_heads >= p.kv_heads && p.query_heads % p.kv_heads == 0 &&
         p.query_heads / p.kv_heads <= 16 &&
         (p.head_dim == 64 || p.head_dim == 96 || p.head_dim == 128 || p.head_dim == 256) &&
         p.frequencies >= 8 && p.frequencies <= kMaxFrequencies && p.frequencies % 8 == 0 &&
         (p.coefficient_bits == 16 || p.coefficient_bits == 32) &&
         (p.dtype == ElementType::kBf16 || p.dtype == ElementType::kFp16) &&
         p.max_middle_tokens >= 0 && p.max_middle_tokens <= kMaxTokens && p.max_exact_tokens >= 0 &&
         p.max_exact_tokens <= kMaxTokens &&
         (p.max_middle_tokens == 0 ||
          (p.max_nodes >= kNodeStep && p.max_nodes <= kMaxTokens + kChunkUnit &&
           p.max_nodes % kNodeStep == 0));
}

bool Aligned(const void* pointer, uintptr_t bytes) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

bool ValidPointers(const SequenceAttentionParams& p) {
  return Aligned(p.q, 4) && Aligned(p.out, 4) && Aligned(p.k.spectral, 4) && Aligned(p.k.ids, 2) &&
         Aligned(p.v.spectral, 4) && Aligned(p.v.ids, 2) && Aligned(p.sequences, 8) &&
         Aligned(p.sides, 8) && Aligned(p.workspace, 256);
}

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
// At least `unit`.
int32_t RoundUp(int64_t a, int64_t unit) {
  return static_cast<int32_t>(std::max(DivideUp(a, unit), int64_t{1}) * unit);
}

// Items are all about equal in time where every sequence has the most tokens: several for each
// warp that the device holds, so that what is left at the end is short.
SequencePlan MakePlan(const SequenceAttentionParams& p, int multiprocessors) {
  SequencePlan plan = {};
  const int64_t rows = int64_t{p.batch} * p.kv_heads;
  plan.group = p.query_heads / p.kv_heads;
  const int64_t wanted = std::clamp<int64_t>(
      int64_t{kItemsPerMultiprocessor} * multiprocessors / rows, 1, kMaxMiddleItems);
  plan.chunk_tokens = RoundUp(DivideUp(p.max_middle_tokens, wanted), kChunkUnit);
  // An exact token has about four times the bytes of another.
  plan.exact_chunk = RoundUp(
      std::max<int64_t>(plan.chunk_tokens / 4, DivideUp(p.max_exact_tokens, kMaxExactItems)),
      kPanelTokens);
  plan.middle_items = static_cast<int32_t>(DivideUp(p.max_middle_tokens, plan.chunk_tokens));
  plan.exact_items = static_cast<int32_t>(DivideUp(p.max_exact_tokens, plan.exact_chunk));

  auto* base = static_cast<uint8_t*>(p.workspace);
  const auto take = [&](int64_t bytes) {
    uint8_t* at = base + plan.bytes;
    plan.bytes += DivideUp(bytes, 256) * 256;
    return at;
  };
  const int64_t max_nodes = p.max_middle_tokens == 0 ? 0 : p.max_nodes;
  plan.max_windows = DivideUp(max_nodes, kNodeStep);
  const int64_t group_rows = rows * plan.group;
  plan.nodes = reinterpret_cast<uint16_t*>(take(2 * group_rows * max_nodes));
  plan.node_scales = reinterpret_cast<float2*>(take(8 * group_rows));
  plan.sums = reinterpret_cast<float*>(take(4 * group_rows * max_nodes));
  plan.sum_maxima = reinterpret_cast<float*>(take(4 * group_rows * plan.max_windows));
  plan.softmax = reinterpret_cast<float2*>(take(8 * group_rows * plan.items()));
  plan.outputs = reinterpret_cast<float*>(take(4 * group_rows * plan.items() * p.head_dim));
  return plan;
}

struct Device {
  int major, multiprocessors, shared_bytes;
};

cudaError_t CurrentDevice(Device* out) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  const auto get = [&](cudaDeviceAttr attribute, int* value) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(value, attribute, device);
  };
  get(cudaDevAttrComputeCapabilityMajor, &out->major);
  get(cudaDevAttrMultiProcessorCount, &out->multiprocessors);
  get(cudaDevAttrMaxSharedMemoryPerBlockOptin, &out->shared_bytes);
  return status;
}

}  // namespace

int64_t SequenceAttentionWorkspace(const SequenceAttentionParams& params) {
  Device device;
  if (!ValidSizes(params) || CurrentDevice(&device) != cudaSuccess) return -1;
  return MakePlan(params, device.multiprocessors).bytes;
}

cudaError_t LaunchSequenceAttention(const SequenceAttentionParams& params, cudaStream_t stream) {
  if (!ValidSizes(params) || !ValidPointers(params)) return cudaErrorInvalidValue;
  Device device;
  cudaError_t status = CurrentDevice(&device);
  if (status != cudaSuccess) return status;
  SequencePlan plan = MakePlan(params, device.multiprocessors);
  plan.early_launch = device.major >= 9;
  if (params.workspace_bytes < plan.bytes) return cudaErrorInvalidValue;
  if (device.major < 8 || NodesToOutputSharedBytes(params, plan) > device.shared_bytes) {
    return cudaErrorNotSupported;
  }
  if (plan.middle_items > 0) {
    status = LaunchStatesToNodes(params, plan, stream);
    if (status != cudaSuccess) return status;
  }
  if (plan.items() > 0) {
    status = LaunchTokens(params, plan, stream);
    if (status != cudaSuccess) return status;
  }
  return LaunchNodesToOutput(params, plan, stream);
}

}  // namespace fourierkv::kernels
