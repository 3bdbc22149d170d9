#include <cuda_bf16.h>

#include <algorithm>

#include "tests/bench/rebuild_attention.h"

namespace fourierkv {
namespace {

using kernels::SequenceAttentionParams;
using kernels::SequenceBasisView;
using kernels::SequenceRef;
using kernels::SequenceSide;

constexpr int kThreads = 256;
constexpr int kMaxDim = 128;
constexpr int kTile = 32;          // tokens
constexpr int kTilesPerBlock = 8;  // of the middle, or exact
constexpr int kStep = 32;          // frequencies in shared memory at a time

// One query head's maximum, sum and output over some tiles.
struct Partial {
  float maximum, sum;
  float out[kMaxDim];
};

struct Shared {
  float tile[kMaxDim][kTile + 1];  // K, then V: by channel id
  float coefficients[2][kStep][kMaxDim + 1];
  float basis[2][kStep][kTile];
  float query[kMaxDim];
  float weights[kTile];
};

__device__ float Bf16(const uint16_t* at) {
  return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(at));
}

// The inverse transform of all spectral channels at tokens first .. first + kTile - 1. A thread has
// four channels and four tokens.
__device__ void Rebuild(const SequenceSide& side, const uint16_t* ids, int spectral,
                        int frequencies, int period, const float2* circle, int first,
                        Shared& shared) {
  const int channel = threadIdx.x / 8 * 4, token = threadIdx.x % 8 * 4;
  const auto* coefficients = static_cast<const uint16_t*>(side.coefficients);
  float sum[4][4] = {};
  for (int k0 = 0; k0 < frequencies; k0 += kStep) {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kStep * kMaxDim; i += kThreads) {
      const int k = i % kStep, j = i / kStep % kMaxDim, part = i / (kStep * kMaxDim);
      const int64_t at = static_cast<int64_t>(j) * 2 * frequencies + part * frequencies + k0 + k;
      const bool there = j < spectral && k0 + k < frequencies;
      shared.coefficients[part][k][j] = there ? Bf16(coefficients + at) : 0;
    }
    for (int i = threadIdx.x; i < kStep * kTile; i += kThreads) {
      const int k = i / kTile, t = i % kTile;
      const int64_t turn = static_cast<int64_t>(k0 + k) * (first + t) % period;
      const float weight = sqrtf((k0 + k == 0 ? 1.0f : 2.0f) / static_cast<float>(period));
      shared.basis[0][k][t] = weight * circle[turn].x;
      shared.basis[1][k][t] = weight * circle[turn].y;
    }
    __syncthreads();
    for (int k = 0; k < kStep; ++k) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        float c[4], b[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] = shared.coefficients[part][k][channel + i];
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = shared.basis[part][k][token + i];
#pragma unroll
        for (int i = 0; i < 16; ++i) sum[i / 4][i % 4] += c[i / 4] * b[i % 4];
      }
    }
  }
  for (int i = 0; i < 16; ++i) {
    const int j = channel + i / 4;
    if (j >= spectral) continue;
    const float gain = side.gain == nullptr ? 1 : side.gain[j];
    const float shift = side.gain == nullptr ? 0 : side.gain[spectral + j];
    shared.tile[ids[j]][token + i % 4] = gain * sum[i / 4][i % 4] + shift;
  }
}

__device__ void LoadMiddle(const SequenceAttentionParams& p, const SequenceRef& sequence,
                           const float2* circle, int part, int64_t row, int head, int first,
                           Shared& shared) {
  const kernels::SequenceChannels& channels = part == 0 ? p.k : p.v;
  const SequenceSide& side = p.sides[2 * row + part];
  const int spectral = channels.spectral[head];
  const uint16_t* ids = channels.ids + head * p.head_dim;
  if (spectral > 0) {
    Rebuild(side, ids, spectral, p.frequencies, sequence.basis.period, circle, first, shared);
  }
  for (int i = threadIdx.x; i < (p.head_dim - spectral) * kTile; i += kThreads) {
    const int j = i / kTile, t = i % kTile;
    const bool there = first + t < sequence.middle_tokens;
    shared.tile[ids[spectral + j]][t] =
        there ? Bf16(side.residents + j * sequence.resident_stride + first + t) : 0;
  }
}

__device__ void LoadExact(const SequenceAttentionParams& p, const SequenceRef& sequence, int part,
                          int head, int first, Shared& shared) {
  const uint16_t* exact =
      (part == 0 ? sequence.exact_k : sequence.exact_v) + head * sequence.exact_head_stride;
  for (int i = threadIdx.x; i < kTile * p.head_dim; i += kThreads) {
    const int t = i / p.head_dim, d = i % p.head_dim;
    const bool there = first + t < sequence.exact_tokens;
    shared.tile[d][t] = there ? Bf16(exact + static_cast<int64_t>(first + t) * p.head_dim + d) : 0;
  }
}

int MiddleBlocks(const SequenceAttentionParams& p) {
  return (p.max_middle_tokens + kTile * kTilesPerBlock - 1) / (kTile * kTilesPerBlock);
}
int ExactBlocks(const SequenceAttentionParams& p) {
  return (p.max_exact_tokens + kTile * kTilesPerBlock - 1) / (kTile * kTilesPerBlock);
}

__global__ void __launch_bounds__(kThreads)
    RebuildKernel(SequenceAttentionParams p, const float2* const* circles, int middle_blocks) {
  extern __shared__ __align__(16) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  const int query_head = blockIdx.y, head = query_head / (p.query_heads / p.kv_heads);
  const SequenceRef& sequence = p.sequences[blockIdx.z];
  const int64_t row = static_cast<int64_t>(blockIdx.z) * p.kv_heads + head;
  const int64_t query = static_cast<int64_t>(blockIdx.z) * p.query_heads + query_head;
  const bool exact = blockIdx.x >= middle_blocks;
  const int first = (exact ? blockIdx.x - middle_blocks : blockIdx.x) * kTile * kTilesPerBlock;
  const int tokens = exact ? sequence.exact_tokens : sequence.middle_tokens;
  const int end = min(first + kTile * kTilesPerBlock, tokens);
  for (int d = threadIdx.x; d < p.head_dim; d += kThreads) {
    shared.query[d] = static_cast<const float*>(p.q)[query * p.head_dim + d] * p.scale;
  }
  float maximum = -3e38f, sum = 0, out = 0;  // out: of channel threadIdx.x
  for (int token = first; token < end; token += kTile) {
    for (int part = 0; part < 2; ++part) {
      __syncthreads();
      if (exact) {
        LoadExact(p, sequence, part, head, token, shared);
      } else {
        LoadMiddle(p, sequence, circles[blockIdx.z], part, row, head, token, shared);
      }
      __syncthreads();
      if (part == 0) {
        // Eight threads a token.
        const int t = threadIdx.x / 8;
        float score = 0;
        for (int d = threadIdx.x % 8; d < p.head_dim; d += 8) {
          score += shared.query[d] * shared.tile[d][t];
        }
        for (int i = 4; i > 0; i /= 2) score += __shfl_xor_sync(~0u, score, i);
        if (threadIdx.x % 8 == 0) shared.weights[t] = token + t < end ? score : -INFINITY;
        __syncthreads();
        float largest = maximum;
        for (int i = 0; i < kTile; ++i) largest = fmaxf(largest, shared.weights[i]);
        const float keep = expf(maximum - largest);
        sum *= keep;
        out *= keep;
        maximum = largest;
        __syncthreads();
        if (threadIdx.x < kTile) {
          shared.weights[threadIdx.x] = expf(shared.weights[threadIdx.x] - maximum);
        }
      } else {
        for (int t = 0; t < kTile; ++t) {
          sum += shared.weights[t];
          if (threadIdx.x < p.head_dim) out += shared.weights[t] * shared.tile[threadIdx.x][t];
        }
      }
    }
  }
  Partial& partial = static_cast<Partial*>(p.workspace)[query * gridDim.x + blockIdx.x];
  if (threadIdx.x == 0) {
    partial.maximum = maximum;
    partial.sum = sum;
  }
  if (threadIdx.x < p.head_dim) partial.out[threadIdx.x] = out;
}

__global__ void MergeKernel(SequenceAttentionParams p, int blocks) {
  const auto* partials =
      static_cast<const Partial*>(p.workspace) + static_cast<int64_t>(blockIdx.x) * blocks;
  float maximum = -3e38f, sum = 0, out = 0;
  for (int i = 0; i < blocks; ++i) maximum = fmaxf(maximum, partials[i].maximum);
  for (int i = 0; i < blocks; ++i) {
    const float factor = expf(partials[i].maximum - maximum);
    sum += factor * partials[i].sum;
    out += factor * partials[i].out[threadIdx.x];
  }
  static_cast<float*>(p.out)[static_cast<int64_t>(blockIdx.x) * p.head_dim + threadIdx.x] =
      sum > 0 ? out / sum : 0;
  if (p.lse != nullptr && threadIdx.x == 0) {
    p.lse[blockIdx.x] = sum > 0 ? maximum + logf(sum) : -INFINITY;
  }
}

}  // namespace

int64_t RebuildAttentionWorkspace(const SequenceAttentionParams& params) {
  return int64_t{params.batch} * params.query_heads * (MiddleBlocks(params) + ExactBlocks(params)) *
         static_cast<int64_t>(sizeof(Partial));
}

cudaError_t LaunchRebuildAttention(const SequenceAttentionParams& params,
                                   const float2* const* circle, cudaStream_t stream) {
  if (params.head_dim > kMaxDim || params.head_dim % 32 != 0 || params.coefficient_bits != 16 ||
      params.dtype != kernels::ElementType::kBf16 || !params.float_io || circle == nullptr ||
      params.workspace == nullptr || params.workspace_bytes < RebuildAttentionWorkspace(params)) {
    return cudaErrorInvalidValue;
  }
  const int middle = MiddleBlocks(params), blocks = middle + ExactBlocks(params);
  const int shared = sizeof(Shared);
  cudaError_t status =
      cudaFuncSetAttribute(RebuildKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess || blocks == 0) return status;
  RebuildKernel<<<dim3(blocks, params.query_heads, params.batch), kThreads, shared, stream>>>(
      params, circle, middle);
  status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  MergeKernel<<<params.batch * params.query_heads, params.head_dim, 0, stream>>>(params, blocks);
  return cudaGetLastError();
}

}  // namespace fourierkv
