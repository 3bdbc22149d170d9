// How a block works on its part of a piece: its warps take units or pages in turn, each with a
// softmax of its own, and leave one record together.

#pragma once

#include <cstdint>

#include "kernels/attention_merge.cuh"
#include "kernels/attention_outputs.cuh"
#include "kernels/attention_pages.cuh"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_scores.cuh"
#include "kernels/attention_uniform.cuh"
#include "kernels/dependent_launch.cuh"
#include "kernels/work_split.cuh"

namespace fourierkv::kernels {

// One block's work on one piece.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
class Worker {
 public:
  // `barriers`: [2 kAttentionWarps], in shared memory.
  __device__ __forceinline__ Worker(const KernelParams& params, uint8_t* shared, uint64_t* barriers)
      : params_(params),
        user_(params.user),
        shared_(shared),
        warp_(threadIdx.x >> 5),
        lane_(threadIdx.x & 31),
        warp_memory_(shared + params.shared.warps + warp_ * params.shared.warp_bytes),
        all_outputs_(reinterpret_cast<float4*>(warp_memory_ + params.shared.outputs)),
        outputs_(all_outputs_, params.shared.log_lanes, lane_),
        shape_{params.log_tokens},
        k_copy_(SharedAddress(warp_memory_), SharedAddress(barriers + 2 * warp_)),
        v_copy_(SharedAddress(warp_memory_) + params.shared.uniform_v,
                SharedAddress(barriers + 2 * warp_ + 1)) {
    if (kUniformBits != 0 && threadIdx.x < 2 * kAttentionWarps) {
      PartCopy::Prepare(SharedAddress(barriers + threadIdx.x));
    }
  }

  // Units [first, last) of `piece`; leaves a record.
  __device__ __forceinline__ void Run(const Piece& piece, int first, int last, float* record) {
    const int kv_head = piece.group / params_.groups_per_head;
    const int heads_per_kv = user_.query_heads / user_.plan.kv_heads;
    const int inner = piece.group % params_.groups_per_head * kGroupHeads;
    heads_ = min(kGroupHeads, heads_per_kv - inner);
    query_base_ = (static_cast<int64_t>(piece.sequence) * user_.query_heads +
                   kv_head * heads_per_kv + inner) *
                  user_.plan.head_dim;
    if (kUniformBits != 0) PartCopy::OrderWrites();  // of pages, where parts are copied to
    __syncthreads();  // what is in shared memory was of the piece before
    // All that comes from far is asked for before anything waits.
    SegmentRef segment = {};
    if (kUniformBits != 0 && !piece.pages && first + warp_ < last) {
      segment = user_.segments[user_.segment_offsets[piece.sequence] + first + warp_];
    }
    StageQueries(kv_head, !piece.pages);
    __syncthreads();
    const int page_chunks = 4 * PageShape(user_.plan.head_dim).blocks;
    if (piece.pages) {
      RunPages(piece, kv_head, first, last);
    } else {
      if constexpr (kUniformBits != 0) {
        RunUniform(piece, first, last, segment);
      } else {
        RunCompact(piece, first, last);
      }
    }
    if constexpr (kUniformBits != 0) {
      if (!piece.pages) return LeaveUniformRecord(record);
    }
    LeaveRecord(piece.pages ? page_chunks : program()->v_chunks, record);
  }

 private:
  __device__ __forceinline__ const HeadProgram* program() const {
    return reinterpret_cast<const HeadProgram*>(shared_);
  }
  __device__ __forceinline__ float* norms() const {
    return reinterpret_cast<float*>(shared_ + params_.shared.norms);
  }
  // Of this warp: [8] maxima, [8] sums.
  __device__ __forceinline__ float* stats() const {
    return reinterpret_cast<float*>(shared_ + params_.shared.stats) + 2 * kGroupHeads * warp_;
  }
  __device__ __forceinline__ uint8_t* slot(int n) const {
    return warp_memory_ + (n & (kSlots - 1)) * user_.plan.slot_bytes;
  }

  // Queries wait here, as float [head_dim], until they are arranged: where outputs are later.
  __device__ __forceinline__ float* staged_query(int head) const {
    return reinterpret_cast<float*>(shared_ + params_.shared.warps +
                                    head % kAttentionWarps * params_.shared.warp_bytes +
                                    params_.shared.outputs) +
           head / kAttentionWarps * user_.plan.head_dim;
  }

  // Brings queries, and the head's program unless pages follow. Queries are divided by norms,
  // powers of two, so that none is 1 or larger.
  __device__ __forceinline__ void StageQueries(int kv_head, bool compact) {
    constexpr int kHeads = kGroupHeads / kAttentionWarps;
    constexpr int kValues = kMaxHeadDim / 32;
    const int d = user_.plan.head_dim;
    WaitForPrerequisites();
    float q[kHeads][kValues];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int head = warp_ + h * kAttentionWarps;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        q[h][i] = 0;
        if (head < heads_ && 32 * i + lane_ < d) q[h][i] = Query(head, 32 * i + lane_, compact);
      }
    }
    const auto* from = reinterpret_cast<const uint4*>(user_.plan.data + user_.plan.programs +
                                                      kv_head * user_.plan.program_bytes);
    auto* const to = reinterpret_cast<uint4*>(shared_);
    for (int i = threadIdx.x; compact && 16 * i < user_.plan.program_bytes;
         i += kAttentionThreads) {
      to[i] = __ldg(from + i);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int head = warp_ + h * kAttentionWarps;
      float largest = 0;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (32 * i + lane_ < d) staged_query(head)[32 * i + lane_] = q[h][i];
        largest = fmaxf(largest, fabsf(q[h][i]));
      }
      largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
      if (lane_ == 0) norms()[head] = PowerOfTwo(ClampExponent(ExponentAbove(largest)));
    }
  }

  __device__ __forceinline__ float Query(int head, int channel, bool rotated) const {
    const int64_t index = query_base_ + static_cast<int64_t>(head) * user_.plan.head_dim + channel;
    return rotated && params_.rotated_queries != nullptr ? params_.rotated_queries[index]
                                                         : LoadInput(user_, index);
  }

  // Then norms become factors: what turns a head's scores into units of log2; and outputs begin
  // with zeros, `chunks` chunks.
  __device__ __forceinline__ void FinishQueries(int chunks) {
    __syncthreads();
    if (threadIdx.x < kGroupHeads) norms()[threadIdx.x] *= user_.scale * kLog2E;
    for (int i = lane_; i < chunks << params_.shared.log_lanes; i += 32) {
      all_outputs_[i] = {0, 0, 0, 0};
    }
    __syncthreads();
  }

  // [chunk][lane]: four channels of head r; those of residents times 2^kUsualExponent.
  __device__ __forceinline__ const float4* ArrangeCompactQueries() {
    auto* queries = reinterpret_cast<float4*>(shared_ + params_.shared.queries);
    const auto* channels = reinterpret_cast<const int16_t*>(shared_ + program()->k_channels);
    const int head = lane_ >> 2;
    const float* staged = staged_query(head);
    const float inverse = 1.0f / norms()[head];
    for (int i = threadIdx.x; i < 32 * program()->k_chunks; i += kAttentionThreads) {
      const short4 ids = *reinterpret_cast<const short4*>(channels + 16 * (i >> 5) + 4 * (i & 3));
      const float factor =
          (i >> 5) >= program()->k_residents ? inverse * (1 << kUsualExponent) : inverse;
      queries[i] = {
          ids.x >= 0 ? staged[ids.x] * factor : 0.0f, ids.y >= 0 ? staged[ids.y] * factor : 0.0f,
          ids.z >= 0 ? staged[ids.z] * factor : 0.0f, ids.w >= 0 ? staged[ids.w] * factor : 0.0f};
    }
    FinishQueries(program()->v_chunks);
    return queries;
  }

  // [32 channels][high, low][lane]: eight channels of head r.
  __device__ __forceinline__ const uint4* ArrangePageQueries() {
    auto* queries = reinterpret_cast<uint4*>(shared_ + params_.shared.queries);
    const int d = user_.plan.head_dim;
    const int head = lane_ >> 2;
    const float* staged = staged_query(head);
    const float inverse = 1.0f / norms()[head];
    for (int i = threadIdx.x; i < 64 * PageShape(d).blocks; i += kAttentionThreads) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const int channel = 32 * (i >> 5) + 8 * (i & 3) + 2 * pair;
        SplitPair<kType>(channel < d ? staged[channel] * inverse : 0.0f,
                         channel < d ? staged[channel + 1] * inverse : 0.0f, &high[pair],
                         &low[pair]);
      }
      queries[2 * (i & ~31) + (i & 31)] = {high[0], high[1], high[2], high[3]};
      queries[2 * (i & ~31) + 32 + (i & 31)] = {low[0], low[1], low[2], low[3]};
    }
    FinishQueries(4 * PageShape(d).blocks);
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
#pragma unroll 1
    for (int i = 0; i < kSlots - 1; ++i) {
      copy();
      CommitCopies();
    }
  }

  __device__ __forceinline__ void RunCompact(const Piece& piece, int first, int last) {
    const float4* const queries = ArrangeCompactQueries();
    const HeadProgram& head = *program();
    const auto* const steps = reinterpret_cast<const Step*>(&head + 1);
    const auto* const copies = reinterpret_cast<const SmallCopy*>(shared_ + head.copies);
    const auto* const bands = reinterpret_cast<const SmallBand*>(shared_ + head.bands);
    const uint8_t* const small_k = warp_memory_ + params_.shared.small_k;
    const uint8_t* const small_v = warp_memory_ + params_.shared.small_v;
    const uint32_t memory = SharedAddress(warp_memory_);
    const SegmentRef* const segments = user_.segments + user_.segment_offsets[piece.sequence];
    const int units = kLogS == 8 ? 1 : params_.units_per_segment;
    const float constant = rsqrtf(static_cast<float>(1 << shape_.log_s()));
    const int step_count = head.steps;
    const int v_step = head.v_step;

    uint32_t copied = 0;  // steps
    int copy_unit = first + warp_;
    int copy_step = 0;
    SegmentRef segment = {};
    if (copy_unit < last) segment = segments[copy_unit / units];
    const auto copy = [&] {
      if (copy_unit < last) {
        const Step step = steps[copy_step];
        const bool values = copy_step >= v_step;
        const uint8_t* payload = values ? segment.v : segment.k;
        if (step.kind == kSmall) {
          CopySmall(memory + (values ? params_.shared.small_v : params_.shared.small_k), payload,
                    copies + (values ? head.k_copies : 0), values ? head.v_copies : head.k_copies,
                    lane_);
        } else if (step.kind != kIdle) {
          CopyResident(values, memory + (copied & (kSlots - 1)) * user_.plan.slot_bytes, step,
                       payload, shape_, copy_unit % units, lane_);
        }
        if (++copy_step == step_count) {
          copy_step = 0;
          copy_unit += kAttentionWarps;
          if (copy_unit < last) segment = segments[copy_unit / units];  // needed a step later
        }
      }
      ++copied;
    };
    StartCopies(copy);

    const int basis_bytes = kBlocks == 0 ? 4096 : 8192 * kBlocks;
    int n = 0;  // steps worked on
#pragma unroll 1
    for (int u = first + warp_; u < last; u += kAttentionWarps) {
      const int unit = u % units;
      const uint8_t* const k_basis = user_.plan.data + user_.plan.k_basis + unit * basis_bytes;
      const uint8_t* const v_basis = user_.plan.data + user_.plan.v_basis + unit * basis_bytes;
      ScoreTiles acc;
      int exponent = kUsualExponent;
      float mean[2] = {0, 0};
#pragma unroll 1
      for (int s = 0; s < v_step; ++s, ++n) {
        Advance(copy);
        const Step step = steps[s];
        if (step.kind == kSmall) {
          ScoreStart<kBlocks> start(small_k, bands, head.k_bands, queries, lane_);
          exponent = start.Begin(acc, constant, k_basis, head.k_blocks, mean);
        } else if (step.kind != kIdle) {
          ScoreStep(acc, step, slot(n), small_k, queries, shape_, unit, exponent, lane_);
        }
      }
      const float unscale = PowerOfTwo(24 - exponent);
      const float2 norm = reinterpret_cast<const float2*>(norms())[lane_ & 3];
      const float factor[2] = {norm.x * unscale, norm.y * unscale};
      const float shift[2] = {norm.x * mean[0], norm.y * mean[1]};
      float keep[2], sum[2];
      WeightTiles weights;
      WeighScores(acc, factor, shift, shape_.half_unit() && lane_ >= 16, softmax_, keep, weights);
#pragma unroll 1
      for (int s = v_step; s < step_count; ++s, ++n) {
        Advance(copy);
        const Step step = steps[s];
        if (step.kind == kSmall) {
          const BasisWeights<kBlocks> basis(weights, v_basis, head.v_blocks, constant, lane_,
                                            softmax_, sum);
          AddSpectralOutputs(small_v, bands + head.k_bands, head.v_bands, basis, keep, outputs_,
                             lane_);
        } else if (step.kind != kIdle) {
          OutputStep(step, slot(n), small_v, shape_, unit, lane_, weights, sum, keep, outputs_);
        }
      }
    }
    WaitForCopies<0>();
  }

  // Of uniform heads; attention_uniform_worker.cuh.
  __device__ __forceinline__ void RunUniform(const Piece& piece, int first, int last,
                                             SegmentRef segment);
  __device__ __forceinline__ void ArrangeQueries(const UniformPart& k, int tiles, int query_bytes,
                                                 uint8_t* to);
  __device__ __forceinline__ void LeaveUniformRecord(float* record);

  __device__ __forceinline__ void RunPages(const Piece& piece, int kv_head, int first, int last) {
    const uint4* const queries = ArrangePageQueries();
    const PageShape shape(user_.plan.head_dim);
    const PageRef* const pages = user_.pages + user_.page_offsets[piece.sequence];
    const int64_t head_offset = kv_head * user_.page_head_stride;
    const uint32_t memory = SharedAddress(warp_memory_);

    uint32_t copied = 0;
    int copy_page = first + warp_;
    int copy_step = 0;
    PageRef page = {};
    if (copy_page < last) page = pages[copy_page];
    const auto copy = [&] {
      if (copy_page < last) {
        CopyPageStep(memory + (copied & (kSlots - 1)) * user_.plan.slot_bytes, page.k + head_offset,
                     page.v + head_offset, page.tokens, copy_step, shape, lane_);
        if (++copy_step == shape.steps()) {
          copy_step = 0;
          copy_page += kAttentionWarps;
          if (copy_page < last) page = pages[copy_page];  // needed a step later
        }
      }
      ++copied;
    };
    StartCopies(copy);

    const float2 norm = reinterpret_cast<const float2*>(norms())[lane_ & 3];
    const float factor[2] = {norm.x, norm.y};
    int n = 0;
    int tokens = first + warp_ < last ? pages[first + warp_].tokens : 0;
#pragma unroll 1
    for (int p = first + warp_; p < last; p += kAttentionWarps) {
      const int next_tokens = p + kAttentionWarps < last ? pages[p + kAttentionWarps].tokens : 0;
      float acc[4][4] = {};
#pragma unroll
      for (int t = 0; t < 4; ++t) {
#pragma unroll 1
        for (int block = 0; block < shape.blocks; ++block, ++n) {
          Advance(copy);
          ScoreKeyBlock<kType>(acc[t], slot(n), queries, block, lane_);
        }
      }
      float keep[2];
      PageWeights weights;
      WeighPage<kType>(acc, factor, tokens, lane_, softmax_, keep, weights);
#pragma unroll 1
      for (int block = 0; block < shape.blocks; ++block) {
        float out[4][4] = {};
#pragma unroll
        for (int t = 0; t < 4; ++t, ++n) {
          Advance(copy);
          OutputValueBlock<kType>(out, slot(n), weights.high[t], weights.low[t], lane_);
        }
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          outputs_.Add(4 * block + w, keep, out[w]);
        }
      }
      tokens = next_tokens;
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
    const int head = 2 * (params_.shared.log_lanes == 5 ? threadIdx.x & 3 : threadIdx.x & 1);
    float weight[2][kAttentionWarps];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = kNoScore;
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        largest = fmaxf(largest, stats[16 * w + head + i]);
      }
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        weight[i][w] = Exp2(stats[16 * w + head + i] - largest);
      }
    }
    if (threadIdx.x < kGroupHeads) {
      float most = kNoScore;
      float total = 0;
      for (int w = 0; w < kAttentionWarps; ++w) most = fmaxf(most, stats[16 * w + threadIdx.x]);
      for (int w = 0; w < kAttentionWarps; ++w) {
        total += Exp2(stats[16 * w + threadIdx.x] - most) * stats[16 * w + 8 + threadIdx.x];
      }
      __stcg(record + threadIdx.x, most);
      __stcg(record + 8 + threadIdx.x, total);
    }
    const int log = params_.shared.log_lanes;
    for (int item = threadIdx.x; item < chunks << log; item += kAttentionThreads) {
      float4 all = {0, 0, 0, 0};
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        const auto* outputs =
            reinterpret_cast<const float4*>(shared_ + params_.shared.warps +
                                            w * params_.shared.warp_bytes + params_.shared.outputs);
        const float4 o = outputs[item];
        all.x = fmaf(o.x, weight[0][w], all.x);
        all.y = fmaf(o.y, weight[1][w], all.y);
        all.z = fmaf(o.z, weight[0][w], all.z);
        all.w = fmaf(o.w, weight[1][w], all.w);
      }
      __stcg(reinterpret_cast<float4*>(record + 16) + item, all);
    }
    softmax_ = Softmax();
  }

  const KernelParams& params_;
  const FourierAttentionParams& user_;
  uint8_t* const shared_;
  const int warp_;
  const int lane_;
  uint8_t* const warp_memory_;
  float4* const all_outputs_;
  const Outputs outputs_;
  const SegmentShape<kLogS> shape_;
  PartCopy k_copy_, v_copy_;  // of uniform heads
  Softmax softmax_;
  int heads_ = 0;
  int64_t query_base_ = 0;
};

}  // namespace fourierkv::kernels
