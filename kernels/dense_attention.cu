#include "kernels/dense_attention.h"
#include "kernels/dependent_launch.cuh"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {
namespace {

// A warp works on tiles of 16 tokens, read straight into operands of tensor cores; the next tile is
// on its way meanwhile. Scores are tokens x heads, outputs channels x heads: eight heads of a group
// are the columns. Within a product channels are permuted alike in both operands, so that what a
// lane reads is 16 bytes of a row. With r = lane / 4 and c = lane % 4:
//   keys     rows r and r + 8, channels 32 i + 8 c .. + 7
//   values   rows 2 c, 2 c + 1, 2 c + 8 and 2 c + 9, channels 64 i + 8 r .. + 7
//   scores   tokens r and r + 8, heads 2 c and 2 c + 1
//   outputs  channels 64 i + 8 r .. + 7, heads 2 c and 2 c + 1
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kHeads = 8;
constexpr int kTile = 16;
constexpr int kMaxSplits = 64;

// Over the lanes of a column: those with the same c.
__device__ __forceinline__ float ColumnMax(float x) {
#pragma unroll
  for (int lane = 4; lane < 32; lane *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}
__device__ __forceinline__ float ColumnSum(float x) {
#pragma unroll
  for (int lane = 4; lane < 32; lane *= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

__device__ __forceinline__ uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Which tile a warp is at. Pages are dealt to the warps in turn.
struct Cursor {
  const PageRef* pages;
  int page, end;
  int tile;
  PageRef ref, next;  // the page, and the one that comes after it, which is read early

  __device__ Cursor(const PageRef* table, int first, int last)
      : pages(table), page(first), end(last), tile(0), ref{}, next{} {
    if (page < end) ref = pages[page];
    if (page + kWarps < end) next = pages[page + kWarps];
  }
  __device__ bool valid() const { return page < end; }
  __device__ void Advance() {
    ++tile;
    if (tile * kTile < ref.tokens) return;
    tile = 0;
    page += kWarps;
    ref = next;
    if (page + kWarps < end) next = pages[page + kWarps];
  }
};

template <int kDim>
struct Tile {
  uint4 k[kDim / 32][2];
  uint4 v[kDim / 64][4];

  // Tokens past the page's end are read as its last one, so that everything is finite.
  __device__ __forceinline__ void LoadKeys(const Cursor& at, int64_t head, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = min(at.tile * kTile + lane / 4 + 8 * i, at.ref.tokens - 1);
      const uint16_t* row = at.ref.k + head + token * kDim + lane % 4 * 8;
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) k[j][i] = LoadOnce(row + 32 * j);
    }
  }
  __device__ __forceinline__ void LoadValues(const Cursor& at, int64_t head, int lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = min(at.tile * kTile + lane % 4 * 2 + i % 2 + i / 2 * 8, at.ref.tokens - 1);
      const uint16_t* row = at.ref.v + head + token * kDim + lane / 4 * 8;
#pragma unroll
      for (int j = 0; j < kDim / 64; ++j) v[j][i] = LoadOnce(row + 64 * j);
    }
  }
};

// Largest score, in units of a binary logarithm, sum and output of some tokens, of the heads 2 c
// and 2 c + 1.
template <int kDim>
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of the lane's own tokens
  float out[kDim / 16][4] = {};

  // Weights of the tile's tokens, to be multiplied with its values.
  __device__ __forceinline__ void Add(float (&scores)[4], uint32_t (&weights)[2]) {
    const float top[2] = {ColumnMax(fmaxf(scores[0], scores[2])),
                          ColumnMax(fmaxf(scores[1], scores[3]))};
    if (__any_sync(0xffffffffu, top[0] > max[0] || top[1] > max[1])) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float larger = fmaxf(max[h], top[h]);
        const float scale = exp2f(max[h] - larger);
        max[h] = larger;
        sum[h] *= scale;
#pragma unroll
        for (auto& o : out) o[h] *= scale, o[h + 2] *= scale;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i] = exp2f(scores[i] - max[i % 2]);
      sum[i % 2] += scores[i];
    }
    weights[0] = Transpose8x8(PackBf16(scores[0], scores[1]));
    weights[1] = Transpose8x8(PackBf16(scores[2], scores[3]));
  }
};

struct Partial {
  float max;
  float sum;
};

// Grid: splits, KV heads, sequences. With one split the result is written, else the splits'.
template <int kDim>
__global__ __launch_bounds__(kThreads, 3) void DenseAttentionKernel(DenseAttentionParams params,
                                                                    Partial* partials,
                                                                    float* outputs) {
  __shared__ float shared_out[kWarps][kHeads][kDim];
  __shared__ Partial shared[kWarps][kHeads];
  LetDependentsStart();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int sequence = blockIdx.z, kv_head = blockIdx.y, splits = gridDim.x;
  const int group = params.query_heads / params.kv_heads;
  const int first_head = sequence * params.query_heads + kv_head * group;
  const int64_t head = kv_head * params.page_head_stride;

  uint4 q[kDim / 32];
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) {
    q[i] = {};
    if (lane / 4 >= group) continue;
    q[i] = *reinterpret_cast<const uint4*>(params.q + int64_t{first_head + lane / 4} * kDim +
                                           32 * i + lane % 4 * 8);
  }
  const int begin = params.page_offsets[sequence];
  const int64_t pages = params.page_offsets[sequence + 1] - begin;
  const int first = begin + static_cast<int>(pages * blockIdx.x / splits);
  const int last = begin + static_cast<int>(pages * (blockIdx.x + 1) / splits);
  if (first == last && splits > 1) {  // the output of no tokens is not read
    if (threadIdx.x < group) {
      partials[int64_t{first_head + static_cast<int>(threadIdx.x)} * splits + blockIdx.x] = {
          -INFINITY, 0};
    }
    return;
  }
  const float scale = params.scale * 1.44269504f;  // exp(x) = exp2(x / log 2)

  Cursor at(params.pages, first + warp, last);
  Tile<kDim> tile;
  Softmax<kDim> softmax;
  if (at.valid()) {
    tile.LoadKeys(at, head, lane);
    tile.LoadValues(at, head, lane);
  }
  while (at.valid()) {
    float scores[4] = {};
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const uint4& a = tile.k[i][0];
      const uint4& b = tile.k[i][1];
      MmaBf16(scores, a.x, b.x, a.y, b.y, q[i].x, q[i].y);
      MmaBf16(scores, a.z, b.z, a.w, b.w, q[i].z, q[i].w);
    }
    const int left = at.ref.tokens - at.tile * kTile;
    at.Advance();
    if (at.valid()) tile.LoadKeys(at, head, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i] = lane / 4 + i / 2 * 8 < left ? scores[i] * scale : -INFINITY;
    }
    uint32_t weights[2];
    softmax.Add(scores, weights);
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t a = Word(tile.v[i][0], j), b = Word(tile.v[i][1], j);
        const uint32_t c = Word(tile.v[i][2], j), d = Word(tile.v[i][3], j);
        MmaBf16(softmax.out[4 * i + j], __byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632),
                __byte_perm(c, d, 0x5410), __byte_perm(c, d, 0x7632), weights[0], weights[1]);
      }
    }
    if (at.valid()) tile.LoadValues(at, head, lane);
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int column = lane % 4 * 2 + h;
    const float sum = ColumnSum(softmax.sum[h]);
    if (lane / 4 == 0) shared[warp][column] = {softmax.max[h], sum};
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      float* const to = &shared_out[warp][column][i / 4 * 64 + lane / 4 * 8 + i % 4 * 2];
      to[0] = softmax.out[i][h];
      to[1] = softmax.out[i][h + 2];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * kDim; i += kThreads) {
    const int g = i / kDim, d = i % kDim;
    float max = -INFINITY, sum = 0, out = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, shared[w][g].max);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      // Of a warp that saw no token both are 0 already, but the difference may be NaN.
      const float weight = shared[w][g].sum > 0 ? exp2f(shared[w][g].max - max) : 0.0f;
      sum += weight * shared[w][g].sum;
      out += weight * shared_out[w][g][d];
    }
    const int64_t index = first_head + g;
    if (splits == 1) {
      const float value = sum > 0 ? out / sum : 0.0f;
      reinterpret_cast<__nv_bfloat16*>(params.out)[index * kDim + d] = __float2bfloat16_rn(value);
      continue;
    }
    outputs[(index * splits + blockIdx.x) * kDim + d] = out;
    if (d == 0) partials[index * splits + blockIdx.x] = {max, sum};
  }
}

// One block to a query head of a sequence, one thread to a channel.
__global__ void MergeSplitsKernel(const Partial* partials, const float* outputs, int splits,
                                  uint16_t* out) {
  LetDependentsStart();
  WaitForPrerequisites();
  const int64_t index = blockIdx.x;
  const int dim = blockDim.x;
  float max = -INFINITY, sum = 0, value = 0;
  for (int s = 0; s < splits; ++s) max = fmaxf(max, partials[index * splits + s].max);
  for (int s = 0; s < splits; ++s) {
    const Partial part = partials[index * splits + s];
    if (part.sum == 0) continue;
    const float weight = exp2f(part.max - max);
    sum += weight * part.sum;
    value += weight * outputs[(index * splits + s) * dim + threadIdx.x];
  }
  reinterpret_cast<__nv_bfloat16*>(out)[index * dim + threadIdx.x] =
      __float2bfloat16_rn(sum > 0 ? value / sum : 0.0f);
}

// Splits of every sequence: few, but with blocks for two waves at least, the last of which is
// nearly full. 0: no usable device.
int Splits(int64_t pairs, int head_dim) {
  int device = 0, multiprocessors = 0, blocks = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess) {
    return 0;
  }
  const cudaError_t status = head_dim == 64 ? cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                                  &blocks, DenseAttentionKernel<64>, kThreads, 0)
                                            : cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                                  &blocks, DenseAttentionKernel<128>, kThreads, 0);
  if (status != cudaSuccess || blocks == 0) return 0;
  const double wave = static_cast<double>(multiprocessors) * blocks;
  int best = 1;
  double best_use = 0;
  for (int splits = 1; splits <= kMaxSplits; ++splits) {
    const double waves = static_cast<double>(pairs) * splits / wave;
    const auto whole = static_cast<double>(static_cast<int64_t>(waves + 0.9999));
    const double use = waves < 2 && splits < kMaxSplits ? 0 : waves / whole;
    if (use > best_use + 0.01) best = splits, best_use = use;
    if (use > 0.96) break;
  }
  return best;
}

int64_t PartialBytes(int64_t heads, int splits) {
  return (heads * splits * static_cast<int64_t>(sizeof(Partial)) + 15) / 16 * 16;
}

bool Aligned(const void* pointer) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace

bool DenseAttentionFits(int32_t kv_heads, int32_t query_heads, int32_t head_dim) {
  return kv_heads >= 1 && kv_heads <= 65535 && query_heads >= kv_heads &&
         query_heads % kv_heads == 0 && query_heads / kv_heads <= kHeads &&
         (head_dim == 64 || head_dim == 128);
}

int64_t DenseAttentionWorkspace(int32_t batch, int32_t kv_heads, int32_t query_heads,
                                int32_t head_dim) {
  if (batch < 1 || batch > 65535 || !DenseAttentionFits(kv_heads, query_heads, head_dim)) return -1;
  const int splits = Splits(int64_t{batch} * kv_heads, head_dim);
  if (splits == 0) return -1;
  const int64_t heads = int64_t{batch} * query_heads;
  return PartialBytes(heads, splits) +
         heads * splits * head_dim * static_cast<int64_t>(sizeof(float));
}

cudaError_t LaunchDenseAttention(const DenseAttentionParams& params, cudaStream_t stream) {
  const int64_t needed =
      DenseAttentionWorkspace(params.batch, params.kv_heads, params.query_heads, params.head_dim);
  if (needed < 0 || params.workspace_bytes < needed || !Aligned(params.workspace) ||
      !Aligned(params.q) || !Aligned(params.out) || params.pages == nullptr ||
      params.page_offsets == nullptr || params.page_head_stride < params.head_dim ||
      params.page_head_stride % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  const int splits = Splits(int64_t{params.batch} * params.kv_heads, params.head_dim);
  const int64_t heads = int64_t{params.batch} * params.query_heads;
  auto* const partials = static_cast<Partial*>(params.workspace);
  auto* const outputs = reinterpret_cast<float*>(static_cast<uint8_t*>(params.workspace) +
                                                 PartialBytes(heads, splits));
  const dim3 grid(splits, params.kv_heads, params.batch);
  if (params.head_dim == 64) {
    DenseAttentionKernel<64><<<grid, kThreads, 0, stream>>>(params, partials, outputs);
  } else {
    DenseAttentionKernel<128><<<grid, kThreads, 0, stream>>>(params, partials, outputs);
  }
  if (splits > 1) {
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) return status;
    return LaunchDependent(MergeSplitsKernel, static_cast<unsigned>(heads), params.head_dim, 0,
                           stream, partials, outputs, splits, params.out);
  }
  return cudaGetLastError();
}

}  // namespace fourierkv::kernels
