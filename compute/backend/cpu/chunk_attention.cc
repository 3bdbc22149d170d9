// Attention of many query tokens (a prefill chunk): blocks are decoded to float tiles, the products
// are OpenBLAS matrix products, and the softmax is online over tiles of keys.
//
// A task is one KV head and one group of query tokens; it decodes every block once. Tasks with the
// most visible keys start first, which evens out the causal triangle.

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/backend/cpu/kernels.h"
#include "compute/backend/cpu/rotation_kernels.h"

namespace fourierkv::cpu {
namespace {

constexpr int kTaskRows = 256;  // query rows (tokens x heads of the group) that share decoded tiles
constexpr int kTileKeys = 256;

int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }

// Rows of one task; row r is query token first_token + r / group, head r % group of the group.
struct QueryRows {
  int group;
  int first_token;
  int rows;
  int head_dim;
  int64_t width;  // head_dim rounded up to 16
  float* q;       // [rows][width], scaled
  float* out;     // [rows][width]
  float* max;     // [rows]
  float* sum;     // [rows]
  float* scores;  // [rows][kTileKeys]
};

// Keys [0, keys) at k, v ([keys][width]). With `causal`, row r sees the first `newest - (tokens
// after its own)` of them, where newest is what the chunk's last token sees.
struct KeyTile {
  const float* k;
  const float* v;
  int keys;
  bool causal;
  int64_t newest;
};

void AttendTile(const QueryRows& queries, const KeyTile& tile, int query_tokens) {
  const auto visible = [&](int row) {
    if (!tile.causal) return tile.keys;
    const int64_t later = query_tokens - 1 - (queries.first_token + row / queries.group);
    return static_cast<int>(std::clamp<int64_t>(tile.newest - later, 0, tile.keys));
  };
  if (visible(queries.rows - 1) == 0) return;
  const int width = static_cast<int>(queries.width);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, queries.rows, tile.keys, queries.head_dim,
              1.0f, queries.q, width, tile.k, width, 0.0f, queries.scores, kTileKeys);
  const int padded = static_cast<int>(RoundUp16(tile.keys));
  for (int r = 0; r < queries.rows; ++r) {
    SoftmaxStep(queries.scores + static_cast<int64_t>(r) * kTileKeys, visible(r), padded,
                queries.max + r, queries.sum + r, queries.out + r * queries.width, width);
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, queries.rows, queries.head_dim, tile.keys,
              1.0f, queries.scores, kTileKeys, tile.v, width, 1.0f, queries.out, width);
}

QueryRows LoadQueries(const AttentionArgs& args, int head, int first_token, int tokens,
                      ScratchArena& arena) {
  QueryRows queries;
  queries.group = args.query_heads / args.kv.kv_heads;
  queries.first_token = first_token;
  queries.rows = tokens * queries.group;
  queries.head_dim = args.kv.head_dim;
  queries.width = RoundUp16(args.kv.head_dim);
  queries.q = arena.Take<float>(queries.rows * queries.width);
  queries.out = arena.Take<float>(queries.rows * queries.width);
  queries.max = arena.Take<float>(queries.rows);
  queries.sum = arena.Take<float>(queries.rows);
  queries.scores = arena.Take<float>(static_cast<int64_t>(queries.rows) * kTileKeys);
  std::fill_n(queries.out, queries.rows * queries.width, 0.0f);
  std::fill_n(queries.max, queries.rows, -std::numeric_limits<float>::infinity());
  std::fill_n(queries.sum, queries.rows, 0.0f);
  const float factor = args.scale * std::numbers::log2e_v<float>;
  for (int r = 0; r < queries.rows; ++r) {
    const int64_t token = first_token + r / queries.group;
    const int64_t query_head = static_cast<int64_t>(head) * queries.group + r % queries.group;
    const float* from = args.q + (token * args.query_heads + query_head) * queries.head_dim;
    for (int c = 0; c < queries.head_dim; ++c) {
      queries.q[r * queries.width + c] = from[c] * factor;
    }
  }
  return queries;
}

// Rows of `from` times U, or times U^T with `back`, in the arena.
float* Rotated(const float* u, bool back, const QueryRows& queries, const float* from,
               ScratchArena& arena) {
  float* to = arena.Take<float>(queries.rows * queries.width);
  std::fill_n(to, queries.rows * queries.width, 0.0f);  // the padding too
  (back ? RotateRowsBack : RotateRows)(u, queries.head_dim, queries.rows, from, queries.width, to,
                                       queries.width);
  return to;
}

// Must come before exact blocks: what it gathers of a rotated V is turned back at its end.
void AttendCompactBlocks(const AttentionArgs& args, int head, QueryRows* queries,
                         ScratchArena& arena) {
  const LayerKv& kv = args.kv;
  if (kv.compact.empty()) return;
  const float* k_rotation = kv.k_layout->heads[head].rotation;
  const float* v_rotation = kv.v_layout->heads[head].rotation;
  QueryRows stored = *queries;  // as the blocks see them
  if (k_rotation != nullptr) stored.q = Rotated(k_rotation, false, *queries, queries->q, arena);
  const int tokens = kv.k_layout->segment_tokens;
  float* k = arena.Take<float>(tokens * queries->width);
  float* v = arena.Take<float>(tokens * queries->width);
  ScratchArena decoding;
  for (const CompactBlock& block : kv.compact) {
    decoding.Reset();
    DecodeHead(*kv.k_layout, head, block.k, k, queries->width, decoding);
    DecodeHead(*kv.v_layout, head, block.v, v, queries->width, decoding);
    for (int t = 0; t < tokens; t += kTileKeys) {
      const KeyTile tile = {k + t * queries->width, v + t * queries->width,
                            std::min(kTileKeys, tokens - t), false, 0};
      AttendTile(stored, tile, args.query_tokens);
    }
  }
  if (v_rotation != nullptr) {
    queries->out = Rotated(v_rotation, true, *queries, queries->out, arena);
  }
}

void AttendExactBlocks(const AttentionArgs& args, int head, const QueryRows& queries,
                       ScratchArena& arena) {
  const LayerKv& kv = args.kv;
  float* k = arena.Take<float>(kTileKeys * queries.width);
  float* v = arena.Take<float>(kTileKeys * queries.width);
  const int64_t later =
      args.query_tokens - 1 - (queries.first_token + (queries.rows - 1) / queries.group);
  for (const ExactBlock& block : kv.exact) {
    const bool causal = &block == &kv.exact.back();
    const int64_t seen = causal ? block.tokens - later : block.tokens;
    for (int64_t t = 0; t < seen; t += kTileKeys) {
      const int keys = static_cast<int>(std::min<int64_t>(kTileKeys, seen - t));
      const int64_t offset = head * block.head_stride + t * kv.head_dim;
      for (int i = 0; i < keys; ++i) {
        const int64_t row = offset + static_cast<int64_t>(i) * kv.head_dim;
        KvToFloats(block.k + row, kv.head_dim, kv.dtype, k + i * queries.width);
        KvToFloats(block.v + row, kv.head_dim, kv.dtype, v + i * queries.width);
      }
      AttendTile(queries, {k, v, keys, causal, block.tokens - t}, args.query_tokens);
    }
  }
}

void StoreOutputs(const AttentionArgs& args, int head, const QueryRows& queries) {
  for (int r = 0; r < queries.rows; ++r) {
    const int64_t token = queries.first_token + r / queries.group;
    const int64_t at =
        token * args.query_heads + static_cast<int64_t>(head) * queries.group + r % queries.group;
    const float normaliser = 1.0f / queries.sum[r];
    for (int c = 0; c < queries.head_dim; ++c) {
      args.out[at * queries.head_dim + c] = queries.out[r * queries.width + c] * normaliser;
    }
    if (args.lse != nullptr) {
      args.lse[at] = std::numbers::ln2_v<float> * (queries.max[r] + std::log2(queries.sum[r]));
    }
  }
}

}  // namespace

void AttendChunk(const AttentionArgs& args, Workers& workers) {
  const int heads = args.kv.kv_heads;
  const int step = std::max(1, kTaskRows / (args.query_heads / heads));
  const int groups = (args.query_tokens + step - 1) / step;
  workers.pool.ParallelFor(static_cast<int64_t>(groups) * heads, [&](int64_t i, int thread) {
    const int head = static_cast<int>(i % heads);
    const int first = (groups - 1 - static_cast<int>(i / heads)) * step;
    ScratchArena& arena = workers.Scratch(thread);
    QueryRows queries =
        LoadQueries(args, head, first, std::min(step, args.query_tokens - first), arena);
    AttendCompactBlocks(args, head, &queries, arena);
    AttendExactBlocks(args, head, queries, arena);
    StoreOutputs(args, head, queries);
  });
}

}  // namespace fourierkv::cpu
