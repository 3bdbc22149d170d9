// Attention of one query token on tokens held as received: the dense case, bound by memory.

#include <algorithm>
#include <limits>

#include "compute/backend/cpu/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/backend/cpu/exact_attention_kernels.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come before the files that are compiled once per target.
#include "compute/backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

// Query heads handled at once share the loads of K and V.
constexpr int kExactGroupTile = kVectorRegisters == 32 ? 4 : 2;
constexpr int kLargestTile = 64;  // tokens; a tile of K and one of V fit in the first-level cache

struct ExactState {
  int head_dim;
  int width;       // head_dim in whole chunks
  int tile;        // tokens
  const float* q;  // [group][width], arranged, 0 in the padding
  float* out;      // [group][width], arranged
  float* max;      // [group]
  float* sum;      // [group]
  float* weights;  // [group][kLargestTile]: scores, then weights
};

template <class Rows, int GT, bool kPartial>
HWY_INLINE void ScoreChunk(const uint16_t* const (&rows)[4], const float* q, int width, int at,
                           int pairs, VF (&acc)[4][GT]) {
  const DF d;
  VF q0[GT], q1[GT];
  HWY_UNROLL(4)
  for (int g = 0; g < GT; ++g) {
    q0[g] = hn::Load(d, q + g * width + at);
    q1[g] = hn::Load(d, q + g * width + at + kLanes);
  }
  HWY_UNROLL(4)
  for (int t = 0; t < 4; ++t) {
    VF k0, k1;
    LoadChunk<Rows, kPartial>(rows[t] + at, pairs, k0, k1);
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      acc[t][g] = hn::MulAdd(k0, q0[g], acc[t][g]);
      acc[t][g] = hn::MulAdd(k1, q1[g], acc[t][g]);
    }
  }
}

// Scores of `tokens` rows of K for query heads g0 ..., four tokens at a time. The rows of V that
// will be needed next are asked for meanwhile.
template <class Rows, int GT>
void ScoreTile(const ExactState& state, int g0, const uint16_t* k, const uint16_t* v, int tokens) {
  const DF d;
  const float* q = state.q + static_cast<int64_t>(g0) * state.width;
  const int whole = state.head_dim / kChunk * kChunk;
  const int pairs = (state.head_dim - whole) / 2;
  for (int t0 = 0; t0 < tokens; t0 += 4) {
    const uint16_t* rows[4];  // rows beyond the last repeat it; their scores are overwritten later
    VF acc[4][GT];
    HWY_UNROLL(4)
    for (int t = 0; t < 4; ++t) {
      rows[t] = k + static_cast<int64_t>(std::min(t0 + t, tokens - 1)) * state.head_dim;
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) acc[t][g] = hn::Zero(d);
    }
    const uint16_t* ahead = v + static_cast<int64_t>(t0) * state.head_dim;
    for (int at = 0; at < whole; at += kChunk) {
      HWY_UNROLL(4)
      for (int t = 0; t < 4; ++t) hwy::Prefetch(ahead + t * state.head_dim + at);
      ScoreChunk<Rows, GT, false>(rows, q, state.width, at, 0, acc);
    }
    if (pairs > 0) ScoreChunk<Rows, GT, true>(rows, q, state.width, whole, pairs, acc);
    for (int g = 0; g < GT; ++g) {
      hn::StoreU(SumLanes4(acc[0][g], acc[1][g], acc[2][g], acc[3][g]), D4(),
                 state.weights + (g0 + g) * kLargestTile + t0);
    }
  }
}

// One step of the online softmax for query head g.
static void WeighTile(const ExactState& state, int g, int tokens) {
  const DF d;
  float* weights = state.weights + g * kLargestTile;
  const int padded = RoundUpToLanes(tokens);
  std::fill(weights + tokens, weights + padded, -std::numeric_limits<float>::infinity());
  VF largest = hn::Load(d, weights);
  for (int t = kLanes; t < padded; t += kLanes) {
    largest = hn::Max(largest, hn::Load(d, weights + t));
  }
  const float max = LargestLane(largest);
  if (max > state.max[g]) {
    const VF factor = Exp2(hn::Set(d, state.max[g] - max));
    float* out = state.out + static_cast<int64_t>(g) * state.width;
    for (int x = 0; x < state.width; x += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, out + x), factor), d, out + x);
    }
    state.sum[g] *= hn::GetLane(factor);
    state.max[g] = max;
  }
  const VF origin = hn::Set(d, state.max[g]);
  VF sum = hn::Zero(d);
  for (int t = 0; t < padded; t += kLanes) {
    const VF weight = Exp2(hn::Sub(hn::Load(d, weights + t), origin));
    hn::Store(weight, d, weights + t);
    sum = hn::Add(sum, weight);
  }
  state.sum[g] += SumLanes(sum);
}

// out[g][chunks from `at`] += weights * V for query heads g0 .... The rows of K that will be needed
// next are asked for meanwhile.
template <class Rows, int GT, int kChunks, bool kPartial>
HWY_INLINE void AddTokens(const ExactState& state, int g0, const uint16_t* v, const uint16_t* ahead,
                          int tokens, int at, int pairs) {
  const DF d;
  float* out = state.out + static_cast<int64_t>(g0) * state.width + at;
  const float* weights = state.weights + g0 * kLargestTile;
  VF acc[2 * kChunks][GT];
  HWY_UNROLL(4)
  for (int x = 0; x < 2 * kChunks; ++x) {
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) acc[x][g] = hn::Load(d, out + g * state.width + x * kLanes);
  }
  for (int t = 0; t < tokens; ++t) {
    VF weight[GT];
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) weight[g] = hn::Set(d, weights[g * kLargestTile + t]);
    const int64_t row = static_cast<int64_t>(t) * state.head_dim + at;
    HWY_UNROLL(2)
    for (int c = 0; c < kChunks; ++c) {
      VF v0, v1;
      LoadChunk<Rows, kPartial>(v + row + c * kChunk, pairs, v0, v1);
      hwy::Prefetch(ahead + row + c * kChunk);
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) {
        acc[2 * c][g] = hn::MulAdd(v0, weight[g], acc[2 * c][g]);
        acc[2 * c + 1][g] = hn::MulAdd(v1, weight[g], acc[2 * c + 1][g]);
      }
    }
  }
  HWY_UNROLL(4)
  for (int x = 0; x < 2 * kChunks; ++x) {
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) hn::Store(acc[x][g], d, out + g * state.width + x * kLanes);
  }
}

template <class Rows, int GT>
void OutputTile(const ExactState& state, int g0, const uint16_t* v, const uint16_t* ahead,
                int tokens) {
  const int whole = state.head_dim / kChunk * kChunk;
  const int pairs = (state.head_dim - whole) / 2;
  int at = 0;
  for (; at + 2 * kChunk <= whole; at += 2 * kChunk) {
    AddTokens<Rows, GT, 2, false>(state, g0, v, ahead, tokens, at, 0);
  }
  if (at < whole) AddTokens<Rows, GT, 1, false>(state, g0, v, ahead, tokens, at, 0);
  if (pairs > 0) AddTokens<Rows, GT, 1, true>(state, g0, v, ahead, tokens, whole, pairs);
}

template <class Rows>
void ScoreGroup(const ExactState& state, int group, const uint16_t* k, const uint16_t* v,
                int tokens) {
  int g = 0;
  for (; g + kExactGroupTile <= group; g += kExactGroupTile) {
    ScoreTile<Rows, kExactGroupTile>(state, g, k, v, tokens);
  }
  for (; g + 2 <= group; g += 2) ScoreTile<Rows, 2>(state, g, k, v, tokens);
  if (g < group) ScoreTile<Rows, 1>(state, g, k, v, tokens);
}

template <class Rows>
void OutputGroup(const ExactState& state, int group, const uint16_t* v, const uint16_t* ahead,
                 int tokens) {
  int g = 0;
  for (; g + kExactGroupTile <= group; g += kExactGroupTile) {
    OutputTile<Rows, kExactGroupTile>(state, g, v, ahead, tokens);
  }
  for (; g + 2 <= group; g += 2) OutputTile<Rows, 2>(state, g, v, ahead, tokens);
  if (g < group) OutputTile<Rows, 1>(state, g, v, ahead, tokens);
}

template <class Rows>
void RunPieces(const ExactRun& run, ScratchArena& arena, const Partial& partial) {
  ExactState state;
  state.head_dim = run.head_dim;
  state.width = RoundUpToChunk(run.head_dim);
  state.tile = run.head_dim <= 128 ? kLargestTile : kLargestTile / 2;
  const int64_t size = static_cast<int64_t>(run.group) * state.width;
  float* q = arena.Take<float>(size);
  state.q = q;
  state.out = arena.Take<float>(size);
  state.weights = arena.Take<float>(static_cast<int64_t>(run.group) * kLargestTile);
  state.max = partial.max;
  state.sum = partial.sum;
  std::fill_n(q, size, 0.0f);
  std::fill_n(state.out, size, 0.0f);
  std::fill_n(state.max, run.group, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, run.group, 0.0f);
  for (int g = 0; g < run.group; ++g) {
    for (int c = 0; c < run.head_dim; ++c) {
      q[g * state.width + Rows::Arranged(c)] = run.q[g * run.head_dim + c];
    }
  }
  for (const ExactPiece& piece : run.pieces) {
    for (int64_t t = 0; t < piece.tokens; t += state.tile) {
      const int tokens = static_cast<int>(std::min<int64_t>(state.tile, piece.tokens - t));
      const uint16_t* k = piece.k + t * run.head_dim;
      const uint16_t* v = piece.v + t * run.head_dim;
      ScoreGroup<Rows>(state, run.group, k, v, tokens);
      for (int g = 0; g < run.group; ++g) WeighTile(state, g, tokens);
      OutputGroup<Rows>(state, run.group, v, k + state.tile * run.head_dim, tokens);
    }
  }
  for (int g = 0; g < run.group; ++g) {
    for (int c = 0; c < run.head_dim; ++c) {
      partial.out[g * run.head_dim + c] = state.out[g * state.width + Rows::Arranged(c)];
    }
  }
}

void AttendExactRun(const ExactRun& run, ScratchArena& arena, const Partial& partial) {
  if (run.dtype == KvDtype::kBf16) {
    RunPieces<Bf16Rows>(run, arena, partial);
  } else {
    RunPieces<Fp16Rows>(run, arena, partial);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fourierkv::cpu {

HWY_EXPORT(AttendExactRun);

void AttendExactRun(const ExactRun& run, ScratchArena& arena, const Partial& partial) {
  HWY_DYNAMIC_DISPATCH(AttendExactRun)(run, arena, partial);
}

}  // namespace fourierkv::cpu
#endif  // HWY_ONCE
