// One block takes a run of query rows of one KV head (row = query token x group member, so that
// every key that is loaded serves the whole group), walks over the keys in flash form, and keeps
// scores, weights and outputs in registers. Copies of the next keys overlap the products of the
// present ones.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/mma.cuh"
#include "kernels/prefill_attention.h"

namespace fourierkv::kernels {
namespace {

// How a block is cut. Rows in shared memory are 16 bytes longer than their values, so that the
// eight rows that ldmatrix reads at once lie in different banks.
template <int kHeadDim, int kOutputs, int kKeysAtOnce, int kWarpCount>
struct Shape {
  static constexpr int kQk = kHeadDim;       // channels of queries and keys, padded with zeros
  static constexpr int kOut = kOutputs;      // channels of the output that a block computes
  static constexpr int kKeys = kKeysAtOnce;  // keys of a step
  static constexpr int kThreads = 32 * kWarpCount;
  static constexpr int kRows = 16 * kWarpCount;
  static constexpr int kQkStride = kQk + 8;
  static constexpr int kOutStride = kOut + 8;
  static constexpr int kQSize = kRows * kQkStride;
  static constexpr int kKSize = kKeys * kQkStride;
  static constexpr int kVSize = kKeys * kOutStride;
  static constexpr int kSharedBytes = 2 * (kQSize + 2 * (kKSize + kVSize));
  static constexpr bool kQueriesInRegisters = kQk <= 128;
  static_assert(kDenseTileTokens % kKeys == 0, "a step lies within a tile");
};

// 16 bytes from global to shared memory, or zeros.
__device__ __forceinline__ void CopyAsync(uint16_t* to, const uint16_t* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(to)),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], const uint16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void LoadTransposed(uint32_t (&r)[4], const uint16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// What differs between the two element types.
struct Bf16 {
  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
    return PackBf16(low, high);
  }
  static __device__ __forceinline__ float Saturate(float x) {
    return fminf(fmaxf(x, -3.3895314e38f), 3.3895314e38f);
  }
  static __device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
    MmaBf16(c, a[0], a[1], a[2], a[3], b0, b1);
  }
};
struct Fp16 {
  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
    return PackF16(low, high);
  }
  static __device__ __forceinline__ float Saturate(float x) {
    return fminf(fmaxf(x, -65504.0f), 65504.0f);
  }
  static __device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
    MmaF16(c, a[0], a[1], a[2], a[3], b0, b1);
  }
};

// Eight channels of a query, rounded to the elements' type.
template <typename Type>
__device__ uint4 LoadQuery(const PrefillAttentionParams& params, int64_t at) {
  if (!params.float_io) {
    return *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(params.q) + at);
  }
  const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(params.q) + at);
  const float4 a = from[0];
  const float4 b = from[1];
  return make_uint4(Type::Pack(Type::Saturate(a.x), Type::Saturate(a.y)),
                    Type::Pack(Type::Saturate(a.z), Type::Saturate(a.w)),
                    Type::Pack(Type::Saturate(b.x), Type::Saturate(b.y)),
                    Type::Pack(Type::Saturate(b.z), Type::Saturate(b.w)));
}

// The rows of a block. Row r is member r % group of query token r / group.
struct Rows {
  int group;
  int first;
  int count;  // of all blocks
  int head;

  __device__ bool exists(int row) const { return row < count; }
  // Tokens that the row sees.
  __device__ int64_t visible(const PrefillAttentionParams& params, int row) const {
    const int token = min(row, count - 1) / group;
    return params.tokens - (params.query_tokens - 1 - token);
  }
  __device__ int query_head(int row) const { return head * group + row % group; }
};

// Walks over the keys in steps of kKeys that do not cross tiles.
template <int kKeys>
class Walk {
 public:
  // Over tiles that begin before token `limit`.
  __device__ Walk(const PrefillAttentionParams& params, int head, int64_t limit)
      : tiles_(params.tiles), count_(params.tile_count), head_(head), limit_(limit) {
    tile_ = tiles_[0];
    if (count_ > 1) next_tile_ = tiles_[1];
  }

  __device__ bool done() const { return index_ >= count_ || first() >= limit_; }
  __device__ int64_t first() const { return tile_.first + key_; }
  __device__ int keys() const { return min(tile_.tokens - key_, kKeys); }
  __device__ const uint16_t* k(int head_dim) const {
    return tile_.k + head_ * tile_.head_stride + static_cast<int64_t>(key_) * head_dim;
  }
  __device__ const uint16_t* v(int head_dim) const {
    return tile_.v + head_ * tile_.head_stride + static_cast<int64_t>(key_) * head_dim;
  }

  __device__ void Step() {
    key_ += kKeys;
    if (key_ < tile_.tokens) return;
    key_ = 0;
    ++index_;
    tile_ = next_tile_;  // read long before it is needed
    if (index_ + 1 < count_) next_tile_ = tiles_[index_ + 1];
  }

 private:
  const DenseTile* const tiles_;
  const int count_;
  const int head_;
  const int64_t limit_;
  DenseTile tile_;
  DenseTile next_tile_ = {};
  int index_ = 0;
  int key_ = 0;
};

// Starts copying `keys` rows of kWidth channels from channel `channel` on; what a row or the head
// does not have becomes zeros, which neither scores nor outputs notice.
template <typename S, int kWidth, int kStride>
__device__ void CopyRows(uint16_t* to, const uint16_t* from, int keys, int channel, int head_dim) {
  constexpr int kChunks = kWidth / 8;
  for (int i = threadIdx.x; i < S::kKeys * kChunks; i += S::kThreads) {
    const int row = i / kChunks;
    const int column = i % kChunks * 8;
    const bool there = row < keys && channel + column < head_dim;
    const int64_t offset = there ? static_cast<int64_t>(row) * head_dim + channel + column : 0;
    CopyAsync(to + row * kStride + column, from + offset, there);
  }
}

// Results of one thread: rows lane / 4 and lane / 4 + 8 of its warp's sixteen.
template <typename S>
struct Softmax {
  float out[S::kOut / 8][4];
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of this thread's keys
};

// One step: scores become weights, relative to the new maximum, and outputs are rescaled to it.
// bound: how many of the keys the rows see.
template <typename S>
__device__ __forceinline__ void UpdateSoftmax(float (&scores)[S::kKeys / 8][4], float scale,
                                              const int (&bound)[2], Softmax<S>& state) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = state.max[r];
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[n][2 * r + i];
        score = n * 8 + column + i < bound[r] ? score * scale : -INFINITY;
        largest = fmaxf(largest, score);
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float base = largest == -INFINITY ? 0 : largest;
    const float correction = Exp2(state.max[r] - base);
    state.max[r] = largest;
    state.sum[r] *= correction;
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scores[n][2 * r + i] = Exp2(scores[n][2 * r + i] - base);
        state.sum[r] += scores[n][2 * r + i];
      }
    }
#pragma unroll
    for (int n = 0; n < S::kOut / 8; ++n) {
      state.out[n][2 * r] *= correction;
      state.out[n][2 * r + 1] *= correction;
    }
  }
}

template <typename S, typename Type>
__device__ __forceinline__ void AddOutputs(const float (&weights)[S::kKeys / 8][4],
                                           const uint16_t* v, Softmax<S>& state) {
  const int lane = threadIdx.x % 32;
  const uint16_t* row = v + (lane & 15) * S::kOutStride + (lane >> 4) * 8;
#pragma unroll
  for (int k = 0; k < S::kKeys / 16; ++k) {
    // The sums' registers of two blocks of eight keys are the operand of one of sixteen.
    const uint32_t p[4] = {Type::Pack(weights[2 * k][0], weights[2 * k][1]),
                           Type::Pack(weights[2 * k][2], weights[2 * k][3]),
                           Type::Pack(weights[2 * k + 1][0], weights[2 * k + 1][1]),
                           Type::Pack(weights[2 * k + 1][2], weights[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < S::kOut / 16; ++n) {
      uint32_t b[4];
      LoadTransposed(b, row + k * 16 * S::kOutStride + n * 16);
      Type::MultiplyAdd(state.out[2 * n], p, b[0], b[1]);
      Type::MultiplyAdd(state.out[2 * n + 1], p, b[2], b[3]);
    }
  }
}

template <typename S, typename Type>
__device__ void StoreRows(const PrefillAttentionParams& params, const Rows& rows,
                          Softmax<S>& state) {
  const int lane = threadIdx.x % 32;
  const int first_channel = blockIdx.z * S::kOut;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int row = rows.first + threadIdx.x / 32 * 16 + lane / 4 + 8 * r;
    if (!rows.exists(row)) continue;
    const int token = row / rows.group;
    const int query_head = rows.query_head(row);
    const float factor = 1.0f / sum;
    const int64_t at =
        token * params.out_stride + static_cast<int64_t>(query_head) * params.head_dim;
#pragma unroll
    for (int n = 0; n < S::kOut / 8; ++n) {
      const int channel = first_channel + n * 8 + lane % 4 * 2;
      if (channel >= params.head_dim) continue;
      const float a = state.out[n][2 * r] * factor;
      const float b = state.out[n][2 * r + 1] * factor;
      if (params.float_io) {
        auto* to = static_cast<float*>(params.out) + at + channel;
        *reinterpret_cast<float2*>(to) = make_float2(a, b);
      } else {
        auto* to = static_cast<uint16_t*>(params.out) + at + channel;
        *reinterpret_cast<uint32_t*>(to) = Type::Pack(a, b);
      }
    }
    if (params.lse != nullptr && blockIdx.z == 0 && lane % 4 == 0) {
      constexpr float kLn2 = 0.6931471805599453f;
      params.lse[static_cast<int64_t>(token) * params.query_heads + query_head] =
          kLn2 * (state.max[r] + log2f(sum));
    }
  }
}

template <typename S, typename Type>
__global__ void __launch_bounds__(S::kThreads)
    PrefillAttentionKernel(const __grid_constant__ PrefillAttentionParams params) {
  extern __shared__ __align__(16) uint16_t shared[];
  uint16_t* const shared_q = shared;
  uint16_t* const shared_k = shared_q + S::kQSize;
  uint16_t* const shared_v = shared_k + 2 * S::kKSize;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int head_dim = params.head_dim;
  const int group = params.query_heads / params.kv_heads;
  // The last rows see most keys: they start first.
  const Rows rows = {group, static_cast<int>(gridDim.x - 1 - blockIdx.x) * S::kRows,
                     params.query_tokens * group, static_cast<int>(blockIdx.y)};

  Walk<S::kKeys> walk(params, rows.head, rows.visible(params, rows.first + S::kRows - 1));
  const auto copy = [&](int stage) {
    CopyRows<S, S::kQk, S::kQkStride>(shared_k + stage * S::kKSize, walk.k(head_dim), walk.keys(),
                                      0, head_dim);
    CopyRows<S, S::kOut, S::kOutStride>(shared_v + stage * S::kVSize, walk.v(head_dim), walk.keys(),
                                        blockIdx.z * S::kOut, head_dim);
    CommitCopies();
  };
  copy(0);

  for (int i = threadIdx.x; i < S::kRows * (S::kQk / 8); i += S::kThreads) {
    const int row = rows.first + i / (S::kQk / 8);
    const int channel = i % (S::kQk / 8) * 8;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (rows.exists(row) && channel < head_dim) {
      value = LoadQuery<Type>(params, row / group * params.q_stride +
                                          static_cast<int64_t>(rows.query_head(row)) * head_dim +
                                          channel);
    }
    *reinterpret_cast<uint4*>(shared_q + i / (S::kQk / 8) * S::kQkStride + channel) = value;
  }
  __syncthreads();
  const uint16_t* const q_row =
      shared_q + (warp * 16 + (lane & 15)) * S::kQkStride + (lane >> 4) * 8;
  uint32_t q[S::kQueriesInRegisters ? S::kQk / 16 : 1][4];
  if constexpr (S::kQueriesInRegisters) {
#pragma unroll
    for (int d = 0; d < S::kQk / 16; ++d) LoadMatrices(q[d], q_row + d * 16);
  }

  constexpr float kLog2E = 1.4426950408889634f;
  const float scale = params.scale * kLog2E;
  const int row0 = rows.first + warp * 16 + lane / 4;
  const int64_t visible[2] = {rows.visible(params, row0), rows.visible(params, row0 + 8)};
  Softmax<S> state;
#pragma unroll
  for (int n = 0; n < S::kOut / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) state.out[n][i] = 0;
  }

  for (int stage = 0;; stage ^= 1) {
    const int64_t first = walk.first();
    const int keys = walk.keys();
    walk.Step();
    const bool last = walk.done();
    if (!last) {
      copy(stage ^ 1);
      WaitForCopies<1>();
    } else {
      WaitForCopies<0>();
    }
    __syncthreads();

    float scores[S::kKeys / 8][4] = {};
    const uint16_t* const k_row = shared_k + stage * S::kKSize +
                                  ((lane & 7) + (lane >> 4) * 8) * S::kQkStride +
                                  (lane >> 3 & 1) * 8;
#pragma unroll
    for (int d = 0; d < S::kQk / 16; ++d) {
      if constexpr (!S::kQueriesInRegisters) LoadMatrices(q[0], q_row + d * 16);
#pragma unroll
      for (int n = 0; n < S::kKeys / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, k_row + n * 16 * S::kQkStride + d * 16);
        const auto& a = q[S::kQueriesInRegisters ? d : 0];
        Type::MultiplyAdd(scores[2 * n], a, b[0], b[1]);
        Type::MultiplyAdd(scores[2 * n + 1], a, b[2], b[3]);
      }
    }
    const auto bound = [&](int r) {
      const int64_t seen = visible[r] - first;
      return static_cast<int>(seen < keys ? seen : keys);  // above 0 or not is all that matters
    };
    const int bounds[2] = {bound(0), bound(1)};
    UpdateSoftmax<S>(scores, scale, bounds, state);
    AddOutputs<S, Type>(scores, shared_v + stage * S::kVSize, state);
    if (last) break;
    __syncthreads();  // before the next copies overwrite what was just read
  }
  StoreRows<S, Type>(params, rows, state);
}

template <typename S, typename Type>
cudaError_t LaunchShape(const PrefillAttentionParams& params, cudaStream_t stream) {
  const cudaError_t status =
      cudaFuncSetAttribute(PrefillAttentionKernel<S, Type>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  if (status != cudaSuccess) return status;
  const int rows = params.query_tokens * (params.query_heads / params.kv_heads);
  const dim3 grid((rows + S::kRows - 1) / S::kRows, params.kv_heads,
                  (params.head_dim + S::kOut - 1) / S::kOut);
  PrefillAttentionKernel<S, Type><<<grid, S::kThreads, S::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Type>
cudaError_t LaunchType(const PrefillAttentionParams& params, cudaStream_t stream) {
  if (params.head_dim <= 64) return LaunchShape<Shape<64, 64, 64, 4>, Type>(params, stream);
  if (params.head_dim <= 96) return LaunchShape<Shape<96, 96, 64, 4>, Type>(params, stream);
  if (params.head_dim <= 128) return LaunchShape<Shape<128, 128, 64, 4>, Type>(params, stream);
  if (params.head_dim <= 256) return LaunchShape<Shape<256, 256, 32, 4>, Type>(params, stream);
  return LaunchShape<Shape<512, 256, 16, 2>, Type>(params, stream);
}

bool Aligned(const void* pointer) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

bool Valid(const PrefillAttentionParams& p) {
  constexpr int64_t kMaxRows = int64_t{1} << 30;
  if (p.kv_heads < 1 || p.kv_heads > 1024 || p.query_heads < p.kv_heads ||
      p.query_heads % p.kv_heads != 0 || p.head_dim < 8 || p.head_dim > 512 ||
      p.head_dim % 8 != 0 || p.query_tokens < 1) {
    return false;
  }
  const int64_t width = static_cast<int64_t>(p.query_heads) * p.head_dim;
  return static_cast<int64_t>(p.query_tokens) * p.query_heads <= kMaxRows &&
         (p.dtype == ElementType::kBf16 || p.dtype == ElementType::kFp16) && Aligned(p.tiles) &&
         p.tile_count >= 1 && p.tokens >= p.query_tokens && Aligned(p.q) && Aligned(p.out) &&
         p.q_stride >= width && p.q_stride % 8 == 0 && p.out_stride >= width &&
         p.out_stride % 8 == 0;
}

}  // namespace

cudaError_t LaunchPrefillAttention(const PrefillAttentionParams& params, cudaStream_t stream) {
  if (!Valid(params)) return cudaErrorInvalidValue;
  int device = 0;
  int major = 0;
  if (cudaError_t status = cudaGetDevice(&device); status != cudaSuccess) return status;
  if (cudaError_t status =
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      status != cudaSuccess) {
    return status;
  }
  if (major < 8) return cudaErrorNotSupported;
  return params.dtype == ElementType::kBf16 ? LaunchType<Bf16>(params, stream)
                                            : LaunchType<Fp16>(params, stream);
}

}  // namespace fourierkv::kernels
