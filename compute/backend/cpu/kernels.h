// The vector kernels of the CPU backend: single-threaded functions over one KV head, dispatched at
// run time to the best instruction set of the machine. Arguments are trusted: callers validate.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "compute/backend/compute_backend.h"
#include "compute/backend/cpu/scratch_arena.h"

namespace fourierkv::cpu {

// Softmax attention of the G query heads of one KV head over a part of the cache, not yet
// normalised:
//   out[g] = sum_t 2^(score[g][t] - max[g]) v[t],   sum[g] = sum_t 2^(score[g][t] - max[g]).
// Scores are in units of log 2: queries come multiplied by scale * log2(e).
struct Partial {
  float* out;  // [G][head_dim]
  float* max;  // [G]
  float* sum;  // [G]
};

// ---- encode and decode (encode_kernels.cc, decode_kernels.cc)

struct EncodeTotals {
  double energy = 0;  // sum of x^2
  double error = 0;   // sum of (x - x^)^2
  bool valid = true;  // false: a value is NaN, infinite or beyond +-1e30
};

// dense: [S][head_dim]; payload: the whole part's. Writes every byte of the head's range.
EncodeTotals EncodeHead(const PartLayout& layout, int head, KvDtype dtype, const uint16_t* dense,
                        std::byte* payload, ScratchArena& arena);

// Tokens [0, S) as floats: token t at rows + t * stride, head_dim values each. rows is 64-byte
// aligned, stride a multiple of 16; what stands between head_dim and stride is undefined
// afterwards. If the head is rotated the rows are those of X U.
void DecodeHead(const PartLayout& layout, int head, const std::byte* payload, float* rows,
                int64_t stride, ScratchArena& arena);

// n values; floats beyond fp16's range become its largest finite value of that sign.
void FloatsToKv(const float* from, int64_t n, KvDtype dtype, uint16_t* to);
void KvToFloats(const uint16_t* from, int64_t n, KvDtype dtype, float* to);

// ---- one query token (compact_attention_kernels.cc, exact_attention_kernels.cc)

// In the space that is stored: for a rotated head of K, q must be q U already; for one of V, out is
// still to be turned back with U^T.
struct CompactRun {
  const PartLayout* k_layout;
  const PartLayout* v_layout;
  int head;  // KV head
  int group;
  const float* q;  // [group][head_dim], scaled
  std::span<const CompactBlock> blocks;
};
void AttendCompactRun(const CompactRun& run, ScratchArena& arena, const Partial& partial);

// Tokens [0, tokens) of one KV head of one exact block.
struct ExactPiece {
  const uint16_t* k;  // [tokens][head_dim]
  const uint16_t* v;
  int64_t tokens;
};
struct ExactRun {
  KvDtype dtype;
  int head_dim;
  int group;
  const float* q;  // [group][head_dim], scaled
  std::span<const ExactPiece> pieces;
};
void AttendExactRun(const ExactRun& run, ScratchArena& arena, const Partial& partial);

// ---- many query tokens (chunk_kernels.cc)

// One step of the online softmax for one query row. scores: `padded` floats, of which the first
// `visible` (0 to padded) count; replaced by weights, 0 for those that do not count. Updates max
// and sum and rescales out (`width` floats) to the new max. scores and out are 64-byte aligned,
// padded and width multiples of 16. Starts from max = -infinity, sum = 0, out = 0.
void SoftmaxStep(float* scores, int visible, int padded, float* max, float* sum, float* out,
                 int width);

// ---- dispatch

// "AVX3": the instruction set that calls use now.
std::string TargetName();
// Instruction sets compiled in that this machine can run, best first, as Highway's HWY_* bits: for
// tests.
std::vector<int64_t> RunnableTargets();
// Tests only, while no kernel runs: 0 chooses the best again.
void ForceTarget(int64_t target);

}  // namespace fourierkv::cpu
