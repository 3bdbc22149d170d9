#include <cuda_bf16.h>

#include "kernels/dependent_launch.cuh"
#include "kernels/llama_ops.h"

namespace fourierkv::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxSize = 1 << 24;  // of a row; keeps products of it and eight within int32

bool Aligned(const void* pointer) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

bool ValidRows(int rows, int size) {
  return rows >= 1 && rows <= (1 << 20) && size >= 8 && size <= kMaxSize && size % 8 == 0;
}

__device__ void Unpack(const uint4& bits, float (&out)[8]) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ uint32_t PackTwo(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&two);
}

__device__ uint4 Pack(const float (&x)[8]) {
  return {PackTwo(x[0], x[1]), PackTwo(x[2], x[3]), PackTwo(x[4], x[5]), PackTwo(x[6], x[7])};
}

__device__ void Load(const float* from, float (&out)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
  out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

__global__ void EmbedTokensKernel(const uint16_t* embeddings, const int32_t* tokens, int hidden,
                                  float* x) {
  LetDependentsStart();
  WaitForPrerequisites();
  const int64_t row = blockIdx.x;
  const auto* from = reinterpret_cast<const uint4*>(embeddings + tokens[row] * int64_t{hidden});
  auto* to = reinterpret_cast<float4*>(x + row * hidden);
  for (int i = threadIdx.x; i < hidden / 8; i += kThreads) {
    float v[8];
    Unpack(from[i], v);
    to[2 * i] = {v[0], v[1], v[2], v[3]};
    to[2 * i + 1] = {v[4], v[5], v[6], v[7]};
  }
}

// The sum over all threads of a block, in every thread.
__device__ float BlockSum(float value) {
  __shared__ float sums[kWarps];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += sums[w];
  return sum;
}

// A thread keeps its first eight values; weights are read before the row is there.
__global__ void RmsNormKernel(const float* x, const float* weight, float eps, int size,
                              uint16_t* y) {
  LetDependentsStart();
  const int64_t row = blockIdx.x;
  const float* in = x + row * size;
  const int first = threadIdx.x * 8, rest = first + kThreads * 8;
  float kept[8] = {}, kept_weight[8] = {};
  if (first < size) Load(weight + first, kept_weight);
  WaitForPrerequisites();
  if (first < size) Load(in + first, kept);
  float sum = 0;
#pragma unroll
  for (float value : kept) sum = fmaf(value, value, sum);
  for (int i = rest; i < size; i += kThreads * 8) {
    float v[8];
    Load(in + i, v);
#pragma unroll
    for (float value : v) sum = fmaf(value, value, sum);
  }
  const float scale = 1.0f / sqrtf(BlockSum(sum) / static_cast<float>(size) + eps);
  auto* out = reinterpret_cast<uint4*>(y + row * size);
  const auto write = [&](int i, float(&v)[8], const float(&w)[8]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] *= scale * w[j];
    out[i / 8] = Pack(v);
  };
  if (first < size) write(first, kept, kept_weight);
  for (int i = rest; i < size; i += kThreads * 8) {
    float v[8], w[8];
    Load(in + i, v);
    Load(weight + i, w);
    write(i, v, w);
  }
}

__global__ void RopeTableKernel(const int32_t* positions, const double* frequencies, int pairs,
                                float* table) {
  LetDependentsStart();
  WaitForPrerequisites();
  const int64_t row = blockIdx.x;
  for (int d = threadIdx.x; d < pairs; d += blockDim.x) {
    double sin_value, cos_value;
    sincos(static_cast<double>(positions[row]) * frequencies[d], &sin_value, &cos_value);
    table[row * 2 * pairs + d] = static_cast<float>(cos_value);
    table[(row * 2 + 1) * pairs + d] = static_cast<float>(sin_value);
  }
}

// A thread rotates four pairs of one head of one row.
__global__ void RopeAppendKernel(RopeAppendParams params) {
  LetDependentsStart();
  WaitForPrerequisites();
  const int head_dim = params.head_dim, half = head_dim / 2;
  const int heads = params.query_heads + 2 * params.kv_heads;
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const int per_head = half / 4;
  const int64_t row = index / (heads * per_head);
  if (row >= params.rows) return;
  const int head = static_cast<int>(index / per_head % heads);
  const int d = static_cast<int>(index % per_head) * 4;

  const float* in = params.qkv + (row * heads + head) * head_dim + d;
  const float4 low = *reinterpret_cast<const float4*>(in);
  const float4 high = *reinterpret_cast<const float4*>(in + half);
  const bool is_value = head >= params.query_heads + params.kv_heads;
  float4 c = {1, 1, 1, 1}, s = {0, 0, 0, 0};
  if (!is_value) {
    const float* table = params.rope + row * head_dim + d;
    c = *reinterpret_cast<const float4*>(table);
    s = *reinterpret_cast<const float4*>(table + half);
  }
  const uint2 new_low = {PackTwo(low.x * c.x - high.x * s.x, low.y * c.y - high.y * s.y),
                         PackTwo(low.z * c.z - high.z * s.z, low.w * c.w - high.w * s.w)};
  const uint2 new_high = {PackTwo(high.x * c.x + low.x * s.x, high.y * c.y + low.y * s.y),
                          PackTwo(high.z * c.z + low.z * s.z, high.w * c.w + low.w * s.w)};

  uint16_t* out;
  if (head < params.query_heads) {
    out = params.q + (row * params.query_heads + head) * head_dim + d;
  } else {
    PageRef* page = params.pages + params.row_pages[row];
    const int token = params.positions[row] % kPageTokens;
    const int kv_head = (head - params.query_heads) % params.kv_heads;
    out = const_cast<uint16_t*>(is_value ? page->v : page->k) + kv_head * params.page_head_stride +
          int64_t{token} * head_dim + d;
    if (kv_head == 0 && d == 0 && is_value) atomicMax(&page->tokens, token + 1);
  }
  *reinterpret_cast<uint2*>(out) = new_low;
  *reinterpret_cast<uint2*>(out + half) = new_high;
}

__global__ void SiluMulKernel(const uint4* gate_up, int rows, int eights, uint4* out) {
  LetDependentsStart();
  WaitForPrerequisites();
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (index >= int64_t{rows} * eights) return;
  const int64_t row = index / eights, i = index % eights;
  float gate[8], up[8];
  Unpack(gate_up[row * 2 * eights + i], gate);
  Unpack(gate_up[(row * 2 + 1) * eights + i], up);
#pragma unroll
  for (int j = 0; j < 8; ++j) gate[j] = gate[j] / (1.0f + __expf(-gate[j])) * up[j];
  out[index] = Pack(gate);
}

// The larger logit of two, of equal ones the first.
struct Candidate {
  float logit;
  int token;
};

__device__ Candidate Better(const Candidate& a, const Candidate& b) {
  return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

constexpr int kChoiceThreads = 1024;

// Calls f(token, logit) for the thread's share of a row, in ascending order.
template <typename F>
__device__ void ForEachLogit(const float* row, int vocab, const F& f) {
  const int fours = vocab % 4 == 0 ? vocab / 4 : 0;  // otherwise rows are not aligned
#pragma unroll 4
  for (int i = threadIdx.x; i < fours; i += kChoiceThreads) {
    const float4 logits = reinterpret_cast<const float4*>(row)[i];
    f(4 * i, logits.x), f(4 * i + 1, logits.y), f(4 * i + 2, logits.z), f(4 * i + 3, logits.w);
  }
#pragma unroll 4
  for (int i = 4 * fours + threadIdx.x; i < vocab; i += kChoiceThreads) f(i, row[i]);
}

__global__ void ChooseTokensKernel(const float* logits, int vocab, TokenChoice* choices) {
  __shared__ Candidate best_of_warp[32];
  __shared__ float sum_of_warp[32];
  LetDependentsStart();
  WaitForPrerequisites();
  const float* row = logits + blockIdx.x * int64_t{vocab};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Candidate best = {-INFINITY, vocab};
  bool finite = true;
  ForEachLogit(row, vocab, [&](int token, float logit) {
    finite = finite && isfinite(logit);
    if (logit > best.logit) best = {logit, token};
  });
#pragma unroll
  for (int other = 16; other > 0; other /= 2) {
    best = Better(best, {__shfl_xor_sync(0xffffffffu, best.logit, other),
                         __shfl_xor_sync(0xffffffffu, best.token, other)});
  }
  if (lane == 0) best_of_warp[warp] = best;
  finite = __syncthreads_and(finite);
  for (const Candidate& other : best_of_warp) best = Better(best, other);
  float sum = 0;
  ForEachLogit(row, vocab, [&](int, float logit) { sum += __expf(logit - best.logit); });
#pragma unroll
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
  if (lane == 0) sum_of_warp[warp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  sum = 0;
  for (const float part : sum_of_warp) sum += part;
  choices[blockIdx.x] = {finite ? best.token : -1, finite ? -logf(sum) : 0.0f};
}

unsigned Blocks(int64_t threads) { return static_cast<unsigned>((threads - 1) / kThreads + 1); }

}  // namespace

cudaError_t LaunchEmbedTokens(const uint16_t* embeddings, const int32_t* tokens, int32_t rows,
                              int32_t hidden, float* x, cudaStream_t stream) {
  if (!Aligned(embeddings) || !Aligned(tokens) || !Aligned(x) || !ValidRows(rows, hidden)) {
    return cudaErrorInvalidValue;
  }
  return LaunchDependent(EmbedTokensKernel, rows, kThreads, 0, stream, embeddings, tokens, hidden,
                         x);
}

cudaError_t LaunchRmsNorm(const float* x, const float* weight, float eps, int32_t rows,
                          int32_t size, uint16_t* y, cudaStream_t stream) {
  if (!Aligned(x) || !Aligned(weight) || !Aligned(y) || !ValidRows(rows, size)) {
    return cudaErrorInvalidValue;
  }
  return LaunchDependent(RmsNormKernel, rows, kThreads, 0, stream, x, weight, eps, size, y);
}

cudaError_t LaunchRopeTable(const int32_t* positions, const double* frequencies, int32_t rows,
                            int32_t pairs, float* table, cudaStream_t stream) {
  if (!Aligned(positions) || !Aligned(frequencies) || !Aligned(table) ||
      !ValidRows(rows, 8 * pairs)) {
    return cudaErrorInvalidValue;
  }
  return LaunchDependent(RopeTableKernel, rows, 64, 0, stream, positions, frequencies, pairs,
                         table);
}

cudaError_t LaunchRopeAppend(const RopeAppendParams& params, cudaStream_t stream) {
  const int64_t heads = int64_t{params.query_heads} + 2 * int64_t{params.kv_heads};
  if (!Aligned(params.qkv) || !Aligned(params.rope) || !Aligned(params.positions) ||
      !Aligned(params.row_pages) || !Aligned(params.pages) || !Aligned(params.q) ||
      !ValidRows(params.rows, params.head_dim) || params.query_heads < 1 || params.kv_heads < 1 ||
      heads * params.head_dim > kMaxSize || params.page_head_stride < params.head_dim ||
      params.page_head_stride % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  const int64_t threads = params.rows * heads * (params.head_dim / 8);
  return LaunchDependent(RopeAppendKernel, Blocks(threads), kThreads, 0, stream, params);
}

cudaError_t LaunchSiluMul(const uint16_t* gate_up, int32_t rows, int32_t size, uint16_t* out,
                          cudaStream_t stream) {
  if (!Aligned(gate_up) || !Aligned(out) || !ValidRows(rows, size)) return cudaErrorInvalidValue;
  const int eights = size / 8;
  return LaunchDependent(SiluMulKernel, Blocks(int64_t{rows} * eights), kThreads, 0, stream,
                         reinterpret_cast<const uint4*>(gate_up), rows, eights,
                         reinterpret_cast<uint4*>(out));
}

cudaError_t LaunchChooseTokens(const float* logits, int32_t rows, int32_t vocab,
                               TokenChoice* choices, cudaStream_t stream) {
  if (!Aligned(logits) || !Aligned(choices) || rows < 1 || rows > (1 << 20) || vocab < 1 ||
      vocab > kMaxSize) {
    return cudaErrorInvalidValue;
  }
  return LaunchDependent(ChooseTokensKernel, rows, kChoiceThreads, 0, stream, logits, vocab,
                         choices);
}

}  // namespace fourierkv::kernels
