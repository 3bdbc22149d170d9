// Attention of one query token, split over KV heads and runs of blocks.
//
// The split depends on the cache alone, never on the number of threads: results are the same bits
// for any number of them.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/backend/cpu/kernels.h"
#include "compute/backend/cpu/rotation_kernels.h"

namespace fourierkv::cpu {
namespace {

// Long enough to make starting and merging a run negligible, short enough to occupy many threads.
constexpr int64_t kCompactRunTokens = 4096;
constexpr int64_t kExactRunTokens = 2048;

// Tokens [begin, begin + tokens) of an exact block.
struct Piece {
  const ExactBlock* block;
  int64_t begin;
  int64_t tokens;
};

// Either blocks [first, last) of the compact ones or pieces [first, last).
struct Run {
  bool exact;
  int64_t first;
  int64_t last;
};

// Cuts exact blocks into pieces of at most a run's length and groups short ones.
void PlanExactRuns(std::span<const ExactBlock> blocks, std::vector<Piece>* pieces,
                   std::vector<Run>* runs) {
  int64_t first = 0;
  int64_t tokens = 0;
  const auto finish = [&] {
    const auto last = static_cast<int64_t>(pieces->size());
    if (last > first) runs->push_back({true, first, last});
    first = last;
    tokens = 0;
  };
  for (const ExactBlock& block : blocks) {
    for (int64_t begin = 0; begin < block.tokens;) {
      const int64_t count = std::min(block.tokens - begin, kExactRunTokens - tokens);
      pieces->push_back({&block, begin, count});
      begin += count;
      tokens += count;
      if (tokens == kExactRunTokens) finish();
    }
  }
  finish();
}

void PlanCompactRuns(const LayerKv& kv, std::vector<Run>* runs) {
  if (kv.compact.empty()) return;
  const auto blocks = static_cast<int64_t>(kv.compact.size());
  const int64_t step = std::max<int64_t>(1, kCompactRunTokens / kv.k_layout->segment_tokens);
  for (int64_t first = 0; first < blocks; first += step) {
    runs->push_back({false, first, std::min(first + step, blocks)});
  }
}

void AttendRun(const LayerKv& kv, const Run& run, const std::vector<Piece>& pieces, int head,
               int group, const float* q, ScratchArena& arena, const Partial& partial) {
  if (!run.exact) {
    AttendCompactRun({kv.k_layout, kv.v_layout, head, group, q,
                      kv.compact.subspan(run.first, run.last - run.first)},
                     arena, partial);
    return;
  }
  auto* of_head = arena.Take<ExactPiece>(run.last - run.first);
  for (int64_t i = run.first; i < run.last; ++i) {
    const Piece& piece = pieces[i];
    const int64_t offset = head * piece.block->head_stride + piece.begin * kv.head_dim;
    of_head[i - run.first] = {piece.block->k + offset, piece.block->v + offset, piece.tokens};
  }
  AttendExactRun(
      {kv.dtype, kv.head_dim, group, q, {of_head, static_cast<size_t>(run.last - run.first)}},
      arena, partial);
}

// Gathers what several runs found for one query head in `into`, which must not be among them.
void Gather(std::span<const Partial> partials, int g, int head_dim, const Partial& into) {
  float max = -std::numeric_limits<float>::infinity();
  for (const Partial& partial : partials) max = std::max(max, partial.max[g]);
  float sum = 0;
  float* out = into.out + static_cast<int64_t>(g) * head_dim;
  std::fill_n(out, head_dim, 0.0f);
  for (const Partial& partial : partials) {
    const float weight = std::exp2(partial.max[g] - max);
    sum += weight * partial.sum[g];
    const float* from = partial.out + static_cast<int64_t>(g) * head_dim;
    for (int c = 0; c < head_dim; ++c) out[c] += weight * from[c];
  }
  into.max[g] = max;
  into.sum[g] = sum;
}

Partial NewPartial(int group, int head_dim, ScratchArena& arena) {
  return {arena.Take<float>(static_cast<int64_t>(group) * head_dim), arena.Take<float>(group),
          arena.Take<float>(group)};
}

// Everything that the runs found for the query heads of one KV head: the first `exact` of them are
// of exact blocks, the others of compact ones.
struct HeadResults {
  std::span<const Partial> partials;
  size_t exact;
  int group;
  int head_dim;
  const float* v_rotation;  // null if V is not rotated
};

Partial MergeHead(const HeadResults& results, ScratchArena& arena) {
  const Partial merged = NewPartial(results.group, results.head_dim, arena);
  if (results.v_rotation == nullptr || results.exact == results.partials.size()) {
    for (int g = 0; g < results.group; ++g) {
      Gather(results.partials, g, results.head_dim, merged);
    }
    return merged;
  }
  // Compact runs first, which are rotated, then all of them turned back beside the exact ones.
  const Partial rotated = NewPartial(results.group, results.head_dim, arena);
  for (int g = 0; g < results.group; ++g) {
    Gather(results.partials.subspan(results.exact), g, results.head_dim, rotated);
  }
  auto* sources = arena.Take<Partial>(static_cast<int64_t>(results.exact) + 1);
  std::copy_n(results.partials.begin(), results.exact, sources);
  Partial& back = sources[results.exact];
  back = {arena.Take<float>(static_cast<int64_t>(results.group) * results.head_dim), rotated.max,
          rotated.sum};
  RotateRowsBack(results.v_rotation, results.head_dim, results.group, rotated.out, results.head_dim,
                 back.out, results.head_dim);
  for (int g = 0; g < results.group; ++g) {
    Gather({sources, results.exact + 1}, g, results.head_dim, merged);
  }
  return merged;
}

void StoreHead(const Partial& merged, const AttentionArgs& args, int head, int group) {
  const int head_dim = args.kv.head_dim;
  for (int g = 0; g < group; ++g) {
    const int64_t row = static_cast<int64_t>(head) * group + g;
    for (int c = 0; c < head_dim; ++c) {
      args.out[row * head_dim + c] = merged.out[g * head_dim + c] / merged.sum[g];
    }
    if (args.lse != nullptr) {
      args.lse[row] = std::numbers::ln2_v<float> * (merged.max[g] + std::log2(merged.sum[g]));
    }
  }
}

// The queries as compact blocks see them: those of heads whose K is rotated turned likewise. `q`
// itself if there are none.
const float* RotateQueries(const LayerKv& kv, const float* q, int group, Workers& workers) {
  if (kv.compact.empty()) return q;
  const auto& heads = kv.k_layout->heads;
  const auto rotated = [](const HeadLayout& head) { return head.rotation != nullptr; };
  if (std::none_of(heads.begin(), heads.end(), rotated)) return q;
  const int64_t size = static_cast<int64_t>(group) * kv.head_dim;
  float* turned = workers.shared.Take<float>(size * kv.kv_heads);
  workers.pool.ParallelFor(kv.kv_heads, [&](int64_t h, int) {
    if (rotated(heads[h])) {
      RotateRows(heads[h].rotation, kv.head_dim, group, q + h * size, kv.head_dim,
                 turned + h * size, kv.head_dim);
    } else {
      std::copy_n(q + h * size, size, turned + h * size);
    }
  });
  return turned;
}

}  // namespace

void AttendSingleQuery(const AttentionArgs& args, Workers& workers) {
  const LayerKv& kv = args.kv;
  const int group = args.query_heads / kv.kv_heads;
  std::vector<Piece> pieces;
  std::vector<Run> runs;
  PlanExactRuns(kv.exact, &pieces, &runs);  // first, because they take longest
  PlanCompactRuns(kv, &runs);

  workers.shared.Reset();
  const int64_t q_size = static_cast<int64_t>(args.query_heads) * kv.head_dim;
  float* q = workers.shared.Take<float>(q_size);
  const float factor = args.scale * std::numbers::log2e_v<float>;
  for (int64_t i = 0; i < q_size; ++i) q[i] = args.q[i] * factor;

  const float* compact_q = RotateQueries(kv, q, group, workers);

  // partials[head * runs + run]
  const auto run_count = static_cast<int64_t>(runs.size());
  const int64_t tasks = run_count * kv.kv_heads;
  std::vector<Partial> partials(tasks);
  for (Partial& partial : partials) partial = NewPartial(group, kv.head_dim, workers.shared);
  workers.pool.ParallelFor(tasks, [&](int64_t i, int thread) {
    const int64_t run = i / kv.kv_heads;
    const int head = static_cast<int>(i % kv.kv_heads);
    AttendRun(kv, runs[run], pieces, head, group,
              (runs[run].exact ? q : compact_q) + static_cast<int64_t>(head) * group * kv.head_dim,
              workers.Scratch(thread), partials[head * run_count + run]);
  });
  const auto first_compact =
      std::find_if(runs.begin(), runs.end(), [](const Run& run) { return !run.exact; });
  for (int h = 0; h < kv.kv_heads; ++h) {
    const HeadResults results = {{partials.data() + h * run_count, static_cast<size_t>(run_count)},
                                 static_cast<size_t>(first_compact - runs.begin()),
                                 group,
                                 kv.head_dim,
                                 kv.compact.empty() ? nullptr : kv.v_layout->heads[h].rotation};
    StoreHead(MergeHead(results, workers.shared), args, h, group);
  }
}

}  // namespace fourierkv::cpu
