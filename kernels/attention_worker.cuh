// How a worker works on its entries of the schedule: its warps take units or pages in turn, each
// with a softmax of its own, and leave one record together.

#pragma once

#include <cstdint>

#include "kernels/attention_entry.h"
#include "kernels/attention_finish.cuh"
#include "kernels/attention_outputs.cuh"
#include "kernels/attention_pages.cuh"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_scores.cuh"
#include "kernels/attention_team.cuh"
#include "kernels/attention_uniform.cuh"
#include "kernels/dependent_launch.cuh"

namespace fourierkv::kernels {

// A warp of a worker: of one warp for uniform heads, where nothing waits for other warps; otherwise
// of all warps of a block.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
class Worker {
 public:
  static constexpr int kWarps = kUniformBits != 0 ? 1 : kAttentionWarps;
  static constexpr int kThreads = 32 * kWarps;

  // `shared`: of this worker. `barriers`: [2] of this warp, in shared memory.
  __device__ __forceinline__ Worker(const KernelParams& params, uint8_t* shared, uint64_t* barriers)
      : params_(params),
        user_(params.user),
        shared_(shared),
        thread_(threadIdx.x & (kThreads - 1)),
        warp_(kWarps == 1 ? 0 : threadIdx.x >> 5),
        lane_(threadIdx.x & 31),
        warp_memory_(shared + params.shared.warps + warp_ * params.shared.warp_bytes),
        all_outputs_(reinterpret_cast<float4*>(warp_memory_ + params.shared.outputs)),
        outputs_(all_outputs_, params.shared.log_lanes, lane_),
        shape_{params.log_tokens},
        k_copy_(SharedAddress(warp_memory_), SharedAddress(barriers)),
        v_copy_(SharedAddress(warp_memory_) + params.shared.uniform_v,
                SharedAddress(barriers + 1)) {
    if (kUniformBits != 0 && lane_ == 0) {
      PartCopy::Prepare(SharedAddress(barriers));
      PartCopy::Prepare(SharedAddress(barriers + 1));
    }
  }

  // The entry `index` and all that follow it in its list.
  __device__ __forceinline__ void Work(int index) {
    int before = -1;  // whose record is not left yet
#pragma unroll 1
    while (true) {
      // What comes from far is asked for before anything waits.
      if (kUniformBits != 0 && index >= 0) StartUniform(params_.entries + index);
      if (before >= 0) Finish(before);
      if (index < 0) return;
      Run(params_.entries + index);
      before = index;
      index = NextEntry(params_.entries + index);
    }
  }

 private:
  // A barrier of the worker's threads.
  __device__ __forceinline__ void WorkerSync() const {
    if (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
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
  // Queries wait here, as float [heads][head_dim], until they are arranged: where the first warp's
  // outputs are later.
  __device__ __forceinline__ float* staged_queries() const {
    return reinterpret_cast<float*>(shared_ + params_.shared.warps + params_.shared.outputs);
  }
  // The plan's program of a head.
  __device__ __forceinline__ const uint8_t* far_program(int kv_head) const {
    return user_.plan.data + user_.plan.programs + kv_head * user_.plan.program_bytes;
  }

  // Read again instead of being kept while units are worked on; from the cache, though.
  static __device__ __forceinline__ int NextEntry(const AttentionEntry* entry) {
    int next;
    asm volatile("ld.global.ca.s32 %0, [%1];" : "=r"(next) : "l"(&entry->next));
    return next;
  }

  __device__ __forceinline__ void Run(const AttentionEntry* entry) {
    const int4 who = __ldg(reinterpret_cast<const int4*>(entry));
    const int4 what = __ldg(reinterpret_cast<const int4*>(entry) + 1);
    heads_ = who.z;
    const bool pages = (who.x & kPages) != 0;
    if (kWarps > 1) __syncthreads();  // what is in shared memory was of the entry before
    if (kUniformBits == 0 && !pages) StartProgram(who.y);
    StageQueries(who.w, !pages);
    if (kUniformBits == 0) WaitForCopies<0>();
    WorkerSync();
    if (pages) {
      RunPages(what.x, who.y, what.y, what.y + what.z);
    } else if constexpr (kUniformBits != 0) {
      RunUniform(what.x + what.y, who.y, what.z);
    } else {
      RunCompact(what.x, what.y, what.y + what.z);
    }
  }

  // Of this warp's block: the worker of its first warp.
  __device__ __forceinline__ uint8_t* block_shared() const {
    return kWarps == 1 ? shared_ - (threadIdx.x >> 5) * params_.shared.worker_bytes : shared_;
  }

  __device__ __forceinline__ void Finish(int index) {
    const AttentionEntry* const entry = params_.entries + index;
    const int4 who = __ldg(reinterpret_cast<const int4*>(entry));
    if (lane_ < 4 && (kUniformBits == 0 || (who.x & kPages) != 0)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        stats()[2 * lane_ + i] = softmax_.largest[i];
        stats()[8 + 2 * lane_ + i] = softmax_.sum[i];
      }
    }
    softmax_ = Softmax();
    const Team team = kWarps == 1 ? Team::Of(__ldg(&entry->team)) : Team(0, kWarps);
    const SharedLayout& layout = params_.shared;
    const int apart = kWarps == 1 ? layout.worker_bytes : 0;
    uint8_t* const base = block_shared();
    const WarpResults results = {base + layout.warps + layout.outputs,
                                 kWarps == 1 ? apart : layout.warp_bytes, base + layout.stats,
                                 kWarps == 1 ? apart : 64};
    uint8_t* const own = base + team.first * apart;
    const MergeTask task = {user_.plan.data,
                            reinterpret_cast<const HeadProgram*>(far_program(who.y)),
                            kUniformBits != 0,
                            layout.log_lanes,
                            user_.plan.head_dim,
                            who.z,
                            who.w,
                            Results(user_),
                            user_.lse,
                            reinterpret_cast<float*>(own + layout.queries),
                            reinterpret_cast<float*>(own + layout.warps + layout.outputs),
                            reinterpret_cast<float4*>(own + apart + layout.warps)};
    FinishPart(team, params_, entry, results, task);
    WorkerSync();
  }

  __device__ __forceinline__ void StartProgram(int kv_head) {
    const uint8_t* const from = far_program(kv_head);
    const uint32_t to = SharedAddress(shared_);
    for (int i = 16 * thread_; i < user_.plan.program_bytes; i += 16 * kThreads) {
      CopyAsync16(to + i, from + i);
    }
    CommitCopies();
  }

  // Brings queries of the entry's heads.
  __device__ __forceinline__ void StageQueries(int row, bool compact) {
    constexpr int kAtOnce = 2;
    WaitForPrerequisites();
    const int64_t first = static_cast<int64_t>(row) * user_.plan.head_dim;
    const float* floats = compact ? params_.rotated_queries : nullptr;
    if (floats == nullptr && user_.float_io) floats = static_cast<const float*>(user_.q);
    const auto* const from =
        floats != nullptr
            ? reinterpret_cast<const uint4*>(floats + first)
            : reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(user_.q) + first);
    const int count = heads_ * user_.plan.head_dim / (floats != nullptr ? 4 : 8);
    auto* const to = reinterpret_cast<float4*>(staged_queries());
#pragma unroll 1
    for (int base = thread_; base < count; base += kAtOnce * kThreads) {
      uint4 raw[kAtOnce];
#pragma unroll
      for (int x = 0; x < kAtOnce; ++x) {
        if (base + x * kThreads < count) raw[x] = __ldcg(from + base + x * kThreads);
      }
#pragma unroll
      for (int x = 0; x < kAtOnce; ++x) {
        const int i = base + x * kThreads;
        if (i >= count) break;
        if (floats != nullptr) {
          reinterpret_cast<uint4*>(to)[i] = raw[x];
          continue;
        }
        const float2 a = Widen(raw[x].x), b = Widen(raw[x].y), c = Widen(raw[x].z),
                     e = Widen(raw[x].w);
        to[2 * i] = {a.x, a.y, b.x, b.y};
        to[2 * i + 1] = {c.x, c.y, e.x, e.y};
      }
    }
  }
  __device__ __forceinline__ float2 Widen(uint32_t pair) const {
    if (kType == ElementType::kFp16) return UnpackF16(pair);
    return {LowBf16(pair), HighBf16(pair)};
  }

  // Queries are divided by a power of two, so that none is 1 or larger: its exponent for one head,
  // which kLanes neighbouring lanes have; `valid`: whether there is such a head.
  template <int kLanes>
  __device__ __forceinline__ int QueryExponent(const float* staged, bool valid) const {
    float largest = 0;
    for (int i = 4 * (lane_ & (kLanes - 1)); valid && i < user_.plan.head_dim; i += 4 * kLanes) {
      const float4 q = *reinterpret_cast<const float4*>(staged + i);
      largest = fmaxf(largest, fmaxf(fmaxf(fabsf(q.x), fabsf(q.y)), fmaxf(fabsf(q.z), fabsf(q.w))));
    }
#pragma unroll
    for (int x = 1; x < kLanes; x *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, x));
    }
    return ClampExponent(ExponentAbove(largest));
  }
  // What turns scores of queries that were divided by 2^exponent into units of log2.
  __device__ __forceinline__ float NormOf(int exponent) const {
    return PowerOfTwo(exponent) * (user_.scale * kLog2E);
  }

  // Of heads 0 to 7, four lanes of every warp each: a factor for queries. Norms are then there
  // after FinishQueries.
  __device__ __forceinline__ float ScaleQueries() {
    const int head = lane_ >> 2;
    const int exponent =
        QueryExponent<4>(staged_queries() + head * user_.plan.head_dim, head < heads_);
    if (warp_ == 0 && (lane_ & 3) == 0) norms()[head] = NormOf(exponent);
    return PowerOfTwo(-exponent);
  }

  // Once all have arranged their queries, outputs begin with zeros: `bytes` of every warp.
  __device__ __forceinline__ void FinishQueries(int bytes) {
    WorkerSync();
    for (int i = lane_; 16 * i < bytes; i += 32) all_outputs_[i] = {0, 0, 0, 0};
    WorkerSync();
  }

  // [chunk][lane]: four channels of head r; those of residents times 2^kUsualExponent.
  __device__ __forceinline__ const float4* ArrangeCompactQueries() {
    auto* queries = reinterpret_cast<float4*>(shared_ + params_.shared.queries);
    const auto* channels = reinterpret_cast<const int16_t*>(shared_ + program()->k_channels);
    const bool valid = (lane_ >> 2) < heads_;
    const float* staged = staged_queries() + (lane_ >> 2) * user_.plan.head_dim;
    const float inverse = ScaleQueries();
    for (int i = thread_; i < 32 * program()->k_chunks; i += kThreads) {
      const short4 ids = *reinterpret_cast<const short4*>(channels + 16 * (i >> 5) + 4 * (i & 3));
      const float factor =
          (i >> 5) >= program()->k_residents ? inverse * (1 << kUsualExponent) : inverse;
      const auto query = [&](int id) { return valid && id >= 0 ? staged[id] * factor : 0.0f; };
      queries[i] = {query(ids.x), query(ids.y), query(ids.z), query(ids.w)};
    }
    FinishQueries(program()->v_chunks << (params_.shared.log_lanes + 4));
    return queries;
  }

  // [32 channels][high, low][lane]: eight channels of head r.
  __device__ __forceinline__ const uint4* ArrangePageQueries() {
    auto* queries = reinterpret_cast<uint4*>(shared_ + params_.shared.page_queries);
    const int d = user_.plan.head_dim;
    const bool valid = (lane_ >> 2) < heads_;
    const float* staged = staged_queries() + (lane_ >> 2) * d;
    const float inverse = ScaleQueries();
    for (int i = thread_; i < 64 * PageShape(d).blocks; i += kThreads) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const int channel = 32 * (i >> 5) + 8 * (i & 3) + 2 * pair;
        const bool own = valid && channel < d;
        SplitPair<kType>(own ? staged[channel] * inverse : 0.0f,
                         own ? staged[channel + 1] * inverse : 0.0f, &high[pair], &low[pair]);
      }
      queries[2 * (i & ~31) + (i & 31)] = {high[0], high[1], high[2], high[3]};
      queries[2 * (i & ~31) + 32 + (i & 31)] = {low[0], low[1], low[2], low[3]};
    }
    FinishQueries(4 * PageShape(d).blocks << (params_.shared.log_lanes + 4));
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

  // Units [first, last) of the segments from `item` on.
  __device__ __forceinline__ void RunCompact(int item, int first, int last) {
    const float4* const queries = ArrangeCompactQueries();
    const HeadProgram& head = *program();
    const auto* const steps = reinterpret_cast<const Step*>(&head + 1);
    const auto* const copies = reinterpret_cast<const SmallCopy*>(shared_ + head.copies);
    const auto* const bands = reinterpret_cast<const SmallBand*>(shared_ + head.bands);
    const uint8_t* const small_k = warp_memory_ + params_.shared.small_k;
    const uint8_t* const small_v = warp_memory_ + params_.shared.small_v;
    const uint32_t memory = SharedAddress(warp_memory_);
    const SegmentRef* const segments = user_.segments + item;
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
  __device__ __forceinline__ void StartUniform(const AttentionEntry* entry);
  __device__ __forceinline__ void PrefetchForQueries(const int4& who) const;
  __device__ __forceinline__ void RunUniform(int first, int kv_head, int count);
  __device__ __forceinline__ void ArrangeQueries(const UniformPart& k, int kv_head, int tiles,
                                                 int query_bytes);
  __device__ __forceinline__ int UniformOutputBytes() const {
    return (heads_ > kTileHeads ? 2 : 1) * user_.plan.v_output_bytes;
  }

  // Pages [first, last) of those from `item` on.
  __device__ __forceinline__ void RunPages(int item, int kv_head, int first, int last) {
    const uint4* const queries = ArrangePageQueries();
    const PageShape shape(user_.plan.head_dim);
    const PageRef* const pages = user_.pages + item;
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
          copy_page += kWarps;
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
    for (int p = first + warp_; p < last; p += kWarps) {
      const int next_tokens = p + kWarps < last ? pages[p + kWarps].tokens : 0;
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
    if (kUniformBits != 0) PartCopy::OrderWrites();  // parts may be copied there next
  }

  const KernelParams& params_;
  const FourierAttentionParams& user_;
  uint8_t* const shared_;
  const int thread_;  // of the worker
  const int warp_;
  const int lane_;
  uint8_t* const warp_memory_;
  float4* const all_outputs_;
  const Outputs outputs_;
  const SegmentShape<kLogS> shape_;
  PartCopy k_copy_, v_copy_;  // of uniform heads
  Softmax softmax_;
  int heads_ = 0;
};

}  // namespace fourierkv::kernels
