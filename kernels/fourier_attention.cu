#include <algorithm>
#include <cstdint>

#include "kernels/attention_merge.cuh"
#include "kernels/attention_outputs.cuh"
#include "kernels/attention_pages.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_scores.cuh"
#include "kernels/fourier_attention.h"
#include "kernels/work_split.cuh"

namespace fourierkv::kernels {
namespace {

constexpr int kSlots = 4;  // of a warp; one step is worked on while three more are copied
constexpr int kGroupHeads = 8;
constexpr int kMaxStretches = 1024;
constexpr float kLog2E = 1.4426950408889634f;

int64_t AlignUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Where everything stands in a block's dynamic shared memory, in bytes.
struct SharedLayout {
  int queries;
  int norms;  // f32[8]: what turns a head's scores into units of log2
  int stats;  // f32[warps][2][8]: maxima, sums
  int warps;
  int warp_bytes;
  int small_k;  // from a warp's start, behind its slots
  int small_v;
  int outputs;
  int total;
};

SharedLayout LayOut(const AttentionPlanView& plan) {
  const int page_blocks = (plan.head_dim + 63) / 64;
  SharedLayout layout = {};
  layout.queries = static_cast<int>(AlignUp(plan.program_bytes, 16));
  layout.norms = layout.queries + std::max(512 * plan.k_chunks, 2048 * page_blocks);
  layout.stats = layout.norms + 32;
  layout.warps = static_cast<int>(AlignUp(layout.stats + 64 * kAttentionWarps + 32, 128));
  layout.small_k = kSlots * plan.slot_bytes;
  layout.small_v = layout.small_k + static_cast<int>(AlignUp(plan.k_small_bytes, 16));
  layout.outputs = layout.small_v + static_cast<int>(AlignUp(plan.v_small_bytes, 16));
  layout.warp_bytes = layout.outputs + 512 * std::max(plan.v_chunks, 4 * page_blocks);
  layout.warp_bytes = static_cast<int>(AlignUp(layout.warp_bytes, 128));
  layout.total = layout.warps + kAttentionWarps * layout.warp_bytes;
  return layout;
}

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
  layout.rotated_queries = AlignUp(4 * groups, 256);
  layout.records = layout.rotated_queries;
  if (plan.k_rotated != 0) {
    layout.records += AlignUp(int64_t{4} * batch * query_heads * plan.head_dim, 256);
  }
  layout.record_floats = RecordFloats(std::max(plan.v_chunks, 4 * page_blocks));
  layout.total = layout.records + 4 * layout.record_floats * (2 * kMaxStretches + 2 * groups);
  return layout;
}

struct KernelParams {
  FourierAttentionParams user;
  SharedLayout shared;
  int groups_per_head;
  int units_per_segment;
  int log_tokens;
  int64_t record_floats;
  int32_t* counters;
  const float* rotated_queries;  // null: K is not rotated
  float* records;
};

__device__ __forceinline__ float LoadInput(const FourierAttentionParams& user, int64_t index) {
  if (user.float_io) return static_cast<const float*>(user.q)[index];
  const uint16_t bits = static_cast<const uint16_t*>(user.q)[index];
  if (user.dtype == ElementType::kBf16) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ void StoreOutput(const FourierAttentionParams& user, int64_t index,
                                            float value) {
  if (user.float_io) {
    static_cast<float*>(user.out)[index] = value;
  } else if (user.dtype == ElementType::kBf16) {
    static_cast<__nv_bfloat16*>(user.out)[index] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(user.out)[index] = __float2half_rn(value);
  }
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
  const auto* programs = reinterpret_cast<const uint32_t*>(user.plan.data + user.plan.programs);
  const auto* program = reinterpret_cast<const HeadProgram*>(user.plan.data + programs[kv_head]);
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

// One block's work on one piece.
template <int kBlocks, int kLogS>
class Worker {
 public:
  __device__ __forceinline__ Worker(const KernelParams& params, uint8_t* shared)
      : params_(params),
        user_(params.user),
        shared_(shared),
        warp_(threadIdx.x >> 5),
        lane_(threadIdx.x & 31),
        warp_memory_(shared + params.shared.warps + warp_ * params.shared.warp_bytes),
        outputs_(reinterpret_cast<float4*>(warp_memory_ + params.shared.outputs)),
        shape_{params.log_tokens} {}

  // Units [first, last) of `piece`; leaves a record.
  __device__ __forceinline__ void Run(const Piece& piece, int first, int last, float* record) {
    const int kv_head = piece.group / params_.groups_per_head;
    const int heads_per_kv = user_.query_heads / user_.plan.kv_heads;
    const int inner = piece.group % params_.groups_per_head * kGroupHeads;
    heads_ = min(kGroupHeads, heads_per_kv - inner);
    query_base_ = (static_cast<int64_t>(piece.sequence) * user_.query_heads +
                   kv_head * heads_per_kv + inner) *
                  user_.plan.head_dim;
    __syncthreads();  // what is in shared memory was of the piece before
    const int chunks =
        piece.pages ? 4 * PageShape(user_.plan.head_dim).blocks : LoadProgram(kv_head)->v_chunks;
    FindNorms();
    for (int i = lane_; i < 32 * chunks; i += 32) outputs_[i] = {0, 0, 0, 0};
    __syncthreads();
    if (piece.pages) {
      if (user_.dtype == ElementType::kBf16) {
        RunPages<ElementType::kBf16>(piece, kv_head, first, last);
      } else {
        RunPages<ElementType::kFp16>(piece, kv_head, first, last);
      }
    } else {
      RunCompact(piece, first, last);
    }
    LeaveRecord(chunks, record);
  }

 private:
  __device__ __forceinline__ const HeadProgram* program() const {
    return reinterpret_cast<const HeadProgram*>(shared_);
  }
  __device__ __forceinline__ float* norms() const {
    return reinterpret_cast<float*>(shared_ + params_.shared.norms);
  }
  __device__ __forceinline__ uint8_t* slot(int n) const {
    return warp_memory_ + (n & (kSlots - 1)) * user_.plan.slot_bytes;
  }

  __device__ __forceinline__ const HeadProgram* LoadProgram(int kv_head) {
    const auto* programs = reinterpret_cast<const uint32_t*>(user_.plan.data + user_.plan.programs);
    const uint8_t* from = user_.plan.data + programs[kv_head];
    const uint32_t bytes = reinterpret_cast<const HeadProgram*>(from)->bytes;
    for (uint32_t i = 16 * threadIdx.x; i < bytes; i += 16 * kAttentionThreads) {
      *reinterpret_cast<uint4*>(shared_ + i) = __ldg(reinterpret_cast<const uint4*>(from + i));
    }
    return reinterpret_cast<const HeadProgram*>(from);
  }

  // Queries are divided by powers of two, so that none is 1 or larger.
  __device__ __forceinline__ void FindNorms() {
    for (int head = warp_; head < kGroupHeads; head += kAttentionWarps) {
      float largest = 0;
      if (head < heads_) {
        for (int d = lane_; d < user_.plan.head_dim; d += 32) {
          largest = fmaxf(largest, fabsf(Query(head, d, false)));
          if (params_.rotated_queries != nullptr) {
            largest = fmaxf(largest, fabsf(Query(head, d, true)));
          }
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      largest = MaxOverRows(largest);
      if (lane_ == 0) {
        norms()[head] = PowerOfTwo(min(max(ExponentAbove(largest), -100), 100));
      }
    }
  }

  __device__ __forceinline__ float Query(int head, int channel, bool rotated) const {
    const int64_t index = query_base_ + static_cast<int64_t>(head) * user_.plan.head_dim + channel;
    return rotated && params_.rotated_queries != nullptr ? params_.rotated_queries[index]
                                                         : LoadInput(user_, index);
  }

  // Then norms become factors.
  __device__ __forceinline__ void FinishQueries() {
    __syncthreads();
    if (threadIdx.x < kGroupHeads) norms()[threadIdx.x] *= user_.scale * kLog2E;
    __syncthreads();
  }

  __device__ __forceinline__ const float4* LoadCompactQueries() {
    auto* queries = reinterpret_cast<float4*>(shared_ + params_.shared.queries);
    const auto* channels =
        reinterpret_cast<const int16_t*>(user_.plan.data + program()->k_channels);
    const int head = lane_ >> 2;
    const float inverse = 1.0f / norms()[head];
    for (int i = threadIdx.x; i < 32 * program()->k_chunks; i += kAttentionThreads) {
      float q[4];
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const int channel = __ldg(channels + 16 * (i >> 5) + 4 * (i & 3) + x);
        q[x] = channel >= 0 && head < heads_ ? Query(head, channel, true) * inverse : 0.0f;
      }
      queries[i] = {q[0], q[1], q[2], q[3]};
    }
    FinishQueries();
    return queries;
  }

  template <ElementType kType>
  __device__ __forceinline__ const uint4* LoadPageQueries() {
    auto* queries = reinterpret_cast<uint4*>(shared_ + params_.shared.queries);
    const int d = user_.plan.head_dim;
    const int head = lane_ >> 2;
    const float inverse = 1.0f / norms()[head];
    for (int i = threadIdx.x; i < 64 * PageShape(d).blocks; i += kAttentionThreads) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const int channel = 32 * (i >> 5) + 8 * (i & 3) + 2 * pair;
        const bool valid = channel < d && head < heads_;
        SplitPair<kType>(valid ? Query(head, channel, false) * inverse : 0.0f,
                         valid ? Query(head, channel + 1, false) * inverse : 0.0f, &high[pair],
                         &low[pair]);
      }
      queries[2 * (i & ~31) + (i & 31)] = {high[0], high[1], high[2], high[3]};
      queries[2 * (i & ~31) + 32 + (i & 31)] = {low[0], low[1], low[2], low[3]};
    }
    FinishQueries();
    return queries;
  }

  // Waits for the copy of step n and starts that of step n + 3.
  template <typename Copy>
  __device__ __forceinline__ void Advance(Copy& copy) {
    WaitForCopies<kSlots - 2>();
    __syncwarp();
    copy();
    CommitCopies();
  }
  template <typename Copy>
  __device__ __forceinline__ void StartCopies(Copy& copy) {
#pragma unroll
    for (int i = 0; i < kSlots - 1; ++i) {
      copy();
      CommitCopies();
    }
  }

  __device__ __forceinline__ void RunCompact(const Piece& piece, int first, int last) {
    const float4* const queries = LoadCompactQueries();
    const HeadProgram& head = *program();
    const auto* const steps = reinterpret_cast<const Step*>(&head + 1);
    const auto* const copies = reinterpret_cast<const SmallCopy*>(shared_ + head.copies);
    const auto* const bands = reinterpret_cast<const SmallBand*>(shared_ + head.bands);
    const uint8_t* const small_k = warp_memory_ + params_.shared.small_k;
    const uint8_t* const small_v = warp_memory_ + params_.shared.small_v;
    const uint32_t slots = SharedAddress(warp_memory_);
    const SegmentRef* const segments = user_.segments + user_.segment_offsets[piece.sequence];
    const int units = params_.units_per_segment;
    const float constant = rsqrtf(static_cast<float>(1 << shape_.log_s()));
    const int step_count = head.steps;
    const int v_step = head.v_step;

    int copied = 0;  // steps
    int copy_unit = first + warp_;
    int copy_step = 0;
    SegmentRef segment = {};
    SegmentRef next = {};
    if (copy_unit < last) segment = segments[copy_unit / units];
    if (copy_unit + kAttentionWarps < last) next = segments[(copy_unit + kAttentionWarps) / units];
    const auto copy = [&] {
      if (copy_unit < last) {
        const Step step = steps[copy_step];
        const bool values = copy_step >= v_step;
        const uint8_t* payload = values ? segment.v : segment.k;
        if (step.kind == kResident) {
          const uint32_t to = slots + (copied & (kSlots - 1)) * user_.plan.slot_bytes;
          if (values) {
            CopyResident<true>(to, step, payload, copy_unit % units);
          } else {
            CopyResident<false>(to, step, payload, copy_unit % units);
          }
        } else if (step.kind == kSmall) {
          CopySmall(SharedAddress(values ? small_v : small_k), payload,
                    copies + (values ? head.k_copies : 0), values ? head.v_copies : head.k_copies,
                    lane_);
        }
        if (++copy_step == step_count) {
          copy_step = 0;
          copy_unit += kAttentionWarps;
          segment = next;
          if (copy_unit + kAttentionWarps < last) {
            next = segments[(copy_unit + kAttentionWarps) / units];
          }
        }
      }
      ++copied;
    };
    StartCopies(copy);

    const int basis_bytes = kBlocks == 0 ? 4096 : 8192 * kBlocks;
    int n = 0;  // steps worked on
    for (int u = first + warp_; u < last; u += kAttentionWarps) {
      const int unit = u % units;
      const uint8_t* const k_basis = user_.plan.data + user_.plan.k_basis + unit * basis_bytes;
      const uint8_t* const v_basis = user_.plan.data + user_.plan.v_basis + unit * basis_bytes;
      ScoreTiles acc;
      int exponent;
      Advance(copy);
      ++n;
      {
        ScoreStart<kBlocks> start(small_k, bands, head.k_bands, queries, lane_);
        exponent = start.Begin(acc, constant, k_basis, head.k_blocks);
      }
      for (int s = 1; s < v_step; ++s, ++n) {
        Advance(copy);
        const Step step = steps[s];
        if (step.kind == kResident) {
          ScoreStep(acc, step, slot(n), small_k, queries, shape_, unit, exponent, lane_);
        }
      }
      const float unscale = PowerOfTwo(24 - exponent);
      const float factor[2] = {norms()[2 * (lane_ & 3)] * unscale,
                               norms()[2 * (lane_ & 3) + 1] * unscale};
      float keep[2], sum[2];
      WeightTiles weights;
      WeighScores(acc, factor, shape_.half_unit() && lane_ >= 16, softmax_, keep, weights);
      Advance(copy);
      ++n;
      {
        const BasisWeights<kBlocks> basis(weights, v_basis, head.v_blocks, constant, lane_,
                                          softmax_, sum);
        AddSpectralOutputs(small_v, bands + head.k_bands, head.v_bands, basis, keep, outputs_,
                           lane_);
      }
      for (int s = v_step + 1; s < step_count; ++s, ++n) {
        Advance(copy);
        const Step step = steps[s];
        if (step.kind == kResident) {
          OutputStep(step, slot(n), small_v, shape_, unit, lane_, weights, sum, keep, outputs_);
        }
      }
    }
    WaitForCopies<0>();
  }

  template <bool kValues>
  __device__ __forceinline__ void CopyResident(uint32_t to, const Step& step,
                                               const uint8_t* payload, int unit) {
    const uint8_t* source = payload + step.source;
    switch (step.bits) {
      case 16:
        return CopyHalves<kValues>(to, step, source, shape_, unit, lane_);
      case 8:
        return CopyBytes<kValues>(to, step, source, shape_, unit, lane_);
      case 4:
        return CopyPlane<kValues>(to, source, shape_.log_quads(4), unit, step.valid, lane_);
      default: {
        const int log = shape_.log_quads(2);
        CopyPlane<kValues>(to, source, log, unit, step.valid, lane_);
        if (step.bits == 3) {
          CopyPlane<kValues>(to + (kChunk << (min(log, 3) + 4)), payload + step.high,
                             shape_.log_quads(1), unit, step.valid, lane_);
        }
      }
    }
  }

  template <ElementType kType>
  __device__ __forceinline__ void RunPages(const Piece& piece, int kv_head, int first, int last) {
    const uint4* const queries = LoadPageQueries<kType>();
    const PageShape shape(user_.plan.head_dim);
    const PageRef* const pages = user_.pages + user_.page_offsets[piece.sequence];
    const int64_t head_offset = kv_head * user_.page_head_stride;
    const uint32_t slots = SharedAddress(warp_memory_);

    int copied = 0;
    int copy_page = first + warp_;
    int copy_step = 0;
    PageRef page = {};
    PageRef next = {};
    if (copy_page < last) page = pages[copy_page];
    if (copy_page + kAttentionWarps < last) next = pages[copy_page + kAttentionWarps];
    const auto copy = [&] {
      if (copy_page < last) {
        CopyPageStep(slots + (copied & (kSlots - 1)) * user_.plan.slot_bytes, page.k + head_offset,
                     page.v + head_offset, page.tokens, copy_step, shape, lane_);
        if (++copy_step == shape.steps()) {
          copy_step = 0;
          copy_page += kAttentionWarps;
          page = next;
          if (copy_page + kAttentionWarps < last) next = pages[copy_page + kAttentionWarps];
        }
      }
      ++copied;
    };
    StartCopies(copy);

    const float factor[2] = {norms()[2 * (lane_ & 3)], norms()[2 * (lane_ & 3) + 1]};
    int n = 0;
    for (int p = first + warp_; p < last; p += kAttentionWarps) {
      const int tokens = pages[p].tokens;
      float acc[4][4] = {};
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        for (int block = 0; block < shape.blocks; ++block, ++n) {
          Advance(copy);
          ScoreKeyBlock<kType>(acc[t], slot(n), queries, block, lane_);
        }
      }
      float keep[2];
      PageWeights weights;
      WeighPage<kType>(acc, factor, tokens, lane_, softmax_, keep, weights);
      for (int block = 0; block < shape.blocks; ++block) {
        float out[4][4] = {};
#pragma unroll
        for (int t = 0; t < 4; ++t, ++n) {
          Advance(copy);
          OutputValueBlock<kType>(out, slot(n), weights.high[t], weights.low[t], lane_);
        }
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          AddOutputs(outputs_ + (4 * block + w) * 32 + lane_, keep, out[w]);
        }
      }
    }
    WaitForCopies<0>();
  }

  // What the block's warps have, as one record.
  __device__ __forceinline__ void LeaveRecord(int chunks, float* record) {
    auto* const stats = reinterpret_cast<float*>(shared_ + params_.shared.stats);
    if (lane_ < 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        stats[16 * warp_ + 2 * lane_ + i] = softmax_.largest[i];
        stats[16 * warp_ + 8 + 2 * lane_ + i] = softmax_.sum[i];
      }
    }
    __syncthreads();
    const int head = 2 * (lane_ & 3);
    float weight[2][kAttentionWarps], largest[2], sum[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      largest[i] = kNoScore;
      sum[i] = 0;
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        largest[i] = fmaxf(largest[i], stats[16 * w + head + i]);
      }
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        weight[i][w] = Exp2(stats[16 * w + head + i] - largest[i]);
        sum[i] = fmaf(weight[i][w], stats[16 * w + 8 + head + i], sum[i]);
      }
    }
    if (threadIdx.x < 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        __stcg(record + head + i, largest[i]);
        __stcg(record + 8 + head + i, sum[i]);
      }
    }
    if (heads_ > 4 || head < 4) {
      for (int item = threadIdx.x; item < 32 * chunks; item += kAttentionThreads) {
        float4 all = {0, 0, 0, 0};
#pragma unroll
        for (int w = 0; w < kAttentionWarps; ++w) {
          const auto* outputs = reinterpret_cast<const float4*>(shared_ + params_.shared.warps +
                                                                w * params_.shared.warp_bytes +
                                                                params_.shared.outputs);
          const float4 o = outputs[item];
          all.x = fmaf(o.x, weight[0][w], all.x);
          all.y = fmaf(o.y, weight[1][w], all.y);
          all.z = fmaf(o.z, weight[0][w], all.z);
          all.w = fmaf(o.w, weight[1][w], all.w);
        }
        __stcg(reinterpret_cast<float4*>(record + 16) + item, all);
      }
    }
    softmax_ = Softmax();
  }

  const KernelParams& params_;
  const FourierAttentionParams& user_;
  uint8_t* const shared_;
  const int warp_;
  const int lane_;
  uint8_t* const warp_memory_;
  float4* const outputs_;
  const SegmentShape<kLogS> shape_;
  Softmax softmax_;
  int heads_ = 0;
  int64_t query_base_ = 0;
};

// The block whose part of a group is the last makes the group's results.
__device__ __forceinline__ void FinishGroup(const KernelParams& params, const WorkLine& line,
                                            int64_t total, const Piece& piece, uint8_t* shared) {
  const FourierAttentionParams& user = params.user;
  MergeTask task;
  DescribePiece(line, total, PieceOf(line, piece.sequence, piece.group, false), &task);
  DescribePiece(line, total, PieceOf(line, piece.sequence, piece.group, true), &task);
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* const counter =
        params.counters + static_cast<int64_t>(piece.sequence) * line.groups + piece.group;
    const int expected = task.parts[0] + task.parts[1];
    last = atomicAdd(counter, 1) == expected - 1;
    if (last) *counter = 0;  // for the next launch
  }
  __syncthreads();
  if (!last) return;
  __threadfence();

  const int kv_head = piece.group / params.groups_per_head;
  const int heads_per_kv = user.query_heads / user.plan.kv_heads;
  const int inner = piece.group % params.groups_per_head * kGroupHeads;
  const auto* programs = reinterpret_cast<const uint32_t*>(user.plan.data + user.plan.programs);
  const auto* program = reinterpret_cast<const HeadProgram*>(user.plan.data + programs[kv_head]);
  task.records = params.records;
  task.record_floats = params.record_floats;
  task.chunks[0] = program->v_chunks;
  task.chunks[1] = 4 * PageShape(user.plan.head_dim).blocks;
  task.heads = min(kGroupHeads, heads_per_kv - inner);
  task.head_dim = user.plan.head_dim;
  task.channels = reinterpret_cast<const int16_t*>(user.plan.data + program->v_channels);
  task.rotation = program->v_rotation == 0
                      ? nullptr
                      : reinterpret_cast<const float*>(user.plan.data + program->v_rotation);
  const int64_t row =
      static_cast<int64_t>(piece.sequence) * user.query_heads + kv_head * heads_per_kv + inner;
  MergeGroup(
      task, reinterpret_cast<float*>(shared + params.shared.warps),
      [&](int head, int channel, float value) {
        StoreOutput(user, (row + head) * user.plan.head_dim + channel, value);
      },
      [&](int head, float value) {
        if (user.lse != nullptr) user.lse[row + head] = value;
      });
}

// Sequences without a single token.
__device__ __forceinline__ void WriteEmpty(const FourierAttentionParams& user,
                                           const WorkLine& line) {
  for (int b = blockIdx.x; b < user.batch; b += gridDim.x) {
    if (line.Before(b) != line.Before(b + 1)) continue;
    const int values = user.query_heads * user.plan.head_dim;
    for (int i = threadIdx.x; i < values; i += kAttentionThreads) {
      StoreOutput(user, static_cast<int64_t>(b) * values + i, 0.0f);
    }
    if (user.lse == nullptr) continue;
    for (int i = threadIdx.x; i < user.query_heads; i += kAttentionThreads) {
      user.lse[b * user.query_heads + i] = -INFINITY;
    }
  }
}

// The sequence that cost `x` lies in.
__device__ __forceinline__ int FindSequence(const WorkLine& line, int64_t x) {
  int sequence = 0;
  for (int base = 1; base < line.batch; base += kAttentionThreads) {
    const int b = base + threadIdx.x;
    const int before = __syncthreads_count(b < line.batch && line.Before(b) * line.groups <= x);
    sequence += before;
    if (before < kAttentionThreads) break;
  }
  return sequence;
}

template <int kBlocks, int kLogS>
__global__ void __launch_bounds__(kAttentionThreads, 3)
    FourierAttentionKernel(const __grid_constant__ KernelParams params) {
  extern __shared__ __align__(128) uint8_t shared[];
  const FourierAttentionParams& user = params.user;
  WorkLine line;
  line.segment_offsets = user.segments != nullptr ? user.segment_offsets : nullptr;
  line.page_offsets = user.pages != nullptr ? user.page_offsets : nullptr;
  line.batch = user.batch;
  line.groups = user.plan.kv_heads * params.groups_per_head;
  line.units_per_segment = params.units_per_segment;
  line.unit_cost = user.plan.segment_cost;
  line.page_cost = user.plan.page_cost;
  WriteEmpty(user, line);
  const int64_t total = line.Total();
  if (total == 0) return;
  // Each warp should have a unit at least.
  const int64_t least = kAttentionWarps * max(line.unit_cost, line.page_cost);
  line.stretches =
      static_cast<int>(min(static_cast<int64_t>(gridDim.x), (total + least - 1) / least));
  if (blockIdx.x >= line.stretches) return;

  int64_t at = line.Start(total, blockIdx.x);
  const int64_t end = line.Start(total, blockIdx.x + 1);
  int sequence = FindSequence(line, at);
  Worker<kBlocks, kLogS> worker(params, shared);
  while (at < end) {
    const int64_t before = line.Before(sequence);
    const int64_t whole = line.Before(sequence + 1) - before;
    if (whole == 0) {
      ++sequence;
      continue;
    }
    const int group = static_cast<int>((at - before * line.groups) / whole);
    if (group >= line.groups) {
      ++sequence;
      continue;
    }
    Piece piece = PieceOf(line, sequence, group, false);
    if (at >= piece.end) piece = PieceOf(line, sequence, group, true);
    const int64_t to = min(end, piece.end);
    float* record =
        params.records + PartialOf(line, total, piece, blockIdx.x) * params.record_floats;
    worker.Run(piece, piece.UnitAt(at), piece.UnitAt(to), record);
    FinishGroup(params, line, total, piece, shared);
    at = to;
  }
}

using Kernel = void (*)(KernelParams);

template <int kLogS>
Kernel KernelFor(int basis_blocks) {
  switch (basis_blocks) {
    case 0:
      return FourierAttentionKernel<0, kLogS>;
    case 1:
      return FourierAttentionKernel<1, kLogS>;
    case 2:
      return FourierAttentionKernel<2, kLogS>;
    default:
      return FourierAttentionKernel<4, kLogS>;
  }
}

bool Aligned(const void* pointer, int64_t to) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % to == 0;
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
         params.scale > 0 && Aligned(params.q, 4) && Aligned(params.out, 4) &&
         params.page_head_stride >= 0 && params.page_head_stride % 8 == 0 &&
         Aligned(params.workspace, 256);
}

}  // namespace

int64_t FourierAttentionWorkspace(const AttentionPlanView& plan, int32_t batch,
                                  int32_t query_heads) {
  if (!ValidSizes(plan, batch, query_heads)) return -1;
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
  KernelParams kernel_params = {};
  kernel_params.user = params;
  kernel_params.shared = LayOut(plan);
  const int heads_per_kv = params.query_heads / plan.kv_heads;
  kernel_params.groups_per_head = (heads_per_kv + kGroupHeads - 1) / kGroupHeads;
  kernel_params.units_per_segment = std::max(1, plan.segment_tokens / kUnitTokens);
  kernel_params.log_tokens = plan.segment_tokens == 128   ? 7
                             : plan.segment_tokens == 256 ? 8
                             : plan.segment_tokens == 512 ? 9
                                                          : 10;
  kernel_params.record_floats = workspace.record_floats;
  kernel_params.counters = static_cast<int32_t*>(params.workspace);
  kernel_params.records = reinterpret_cast<float*>(base + workspace.records);

  const Kernel kernel = plan.segment_tokens == 256 ? KernelFor<8>(plan.basis_blocks)
                                                   : KernelFor<0>(plan.basis_blocks);
  const int shared = static_cast<int>(std::max<int64_t>(
      kernel_params.shared.total,
      kernel_params.shared.warps + MergeSharedBytes(kMaxStretches + 2, plan.head_dim)));
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  int blocks = 0;
  status =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kAttentionThreads, shared);
  if (status != cudaSuccess) return status;
  if (blocks < 1) return cudaErrorInvalidConfiguration;
  if (plan.k_rotated != 0) {
    auto* const rotated = reinterpret_cast<float*>(base + workspace.rotated_queries);
    kernel_params.rotated_queries = rotated;
    const dim3 grid(params.query_heads, params.batch);
    RotateQueriesKernel<<<grid, 128, 4 * plan.head_dim, stream>>>(params, rotated);
    status = cudaGetLastError();
    if (status != cudaSuccess) return status;
  }
  const int grid = std::min(blocks * processors, kMaxStretches);
  kernel<<<grid, kAttentionThreads, shared, stream>>>(kernel_params);
  return cudaGetLastError();
}

}  // namespace fourierkv::kernels
