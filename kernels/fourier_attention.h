// Attention of one new token of each sequence over its KV cache, compact segments included, without
// decoding them. docs/kernels.md explains how; docs/math.md, section 4, why that is exact.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/attention_plan.h"
#include "kernels/attention_schedule.h"
#include "kernels/segment_view.h"

namespace fourierkv::kernels {

// Payloads of K and V of one layer of one compact segment: device pointers, 16-byte aligned.
struct SegmentRef {
  const uint8_t* k;
  const uint8_t* v;
};

// Up to kPageTokens tokens of one layer held as received. Head h at + h * page_head_stride:
// [tokens][head_dim], 16-byte aligned.
struct PageRef {
  const uint16_t* k;
  const uint16_t* v;
  int32_t tokens;  // 1 to kPageTokens
  int32_t reserved;
};
inline constexpr int kPageTokens = 64;

struct FourierAttentionParams {
  AttentionPlanView plan;  // of the layer: what BuildAttentionPlan made, in device memory
  int32_t batch;           // sequences
  int32_t query_heads;     // a multiple of kv_heads; at most 16 to each
  ElementType dtype;       // of pages, and of q and out unless they are float
  bool float_io;           // q and out are float instead of dtype
  float scale;             // of the scores: 1 / sqrt(head_dim) usually
  const void* q;           // [batch][query_heads][head_dim], 16-byte aligned
  void* out;               // like q: softmax(scale q K) V
  float* lse;              // [batch][query_heads]: natural log of the softmax's sum; may be null

  // Which segments and pages sequences have: what LaunchAttentionSchedule made, for this batch, of
  // the offsets of these tables. Order within a sequence does not matter. A sequence without either
  // gives out 0 and lse minus infinity.
  AttentionSchedule schedule;
  const SegmentRef* segments;  // may be null if there are none
  const PageRef* pages;        // may be null if there are none
  int64_t page_head_stride;    // in elements, a multiple of 8

  // Start while the kernel before is still running, if that lets it and the device can
  // (dependent_launch.cuh). The schedule, tables, segments and the plan must have been written
  // before that one started; queries and pages may be what it writes.
  bool early_launch;

  void* workspace;          // device memory, 256-byte aligned, zeroed once before its first use;
  int64_t workspace_bytes;  // at least FourierAttentionWorkspace(); one launch at a time may use it
};

// What a schedule for launches of this plan, batch and device depends on. A schedule serves layers
// of other plans too, if their shapes are the same but for the costs.
//
// cudaErrorInvalidValue, cudaErrorInvalidConfiguration and what the runtime reports as of
// LaunchFourierAttention.
cudaError_t FourierAttentionShape(const AttentionPlanView& plan, int32_t batch, int32_t query_heads,
                                  ElementType dtype, AttentionScheduleShape* shape);

// Bytes of workspace for `batch` sequences on the current device; negative: no device, sizes out of
// bounds, or a plan that needs more shared memory than the device has. A workspace serves launches
// of any plan and batch that it is large enough for.
int64_t FourierAttentionWorkspace(const AttentionPlanView& plan, int32_t batch,
                                  int32_t query_heads);

// Enqueues the attention of one layer. Operands of tensor cores are rounded to 11 bits or better,
// sums are float; results do not vary from run to run. All pointers are to device memory and must
// stay valid until the stream has run; tables may change between replays of a captured graph.
//
// Nothing is enqueued in case of
//   cudaErrorInvalidValue         null or misaligned pointers, sizes out of bounds, too little
//                                 workspace, a schedule that was made for something else
//   cudaErrorNotSupported         a device older than compute capability 8.0
//   cudaErrorInvalidConfiguration a plan that needs more shared memory than the device has
// or what the runtime reports.
cudaError_t LaunchFourierAttention(const FourierAttentionParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
