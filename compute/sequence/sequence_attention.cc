#include "compute/sequence/sequence_attention.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <numbers>
#include <vector>

#include "compute/backend/cpu/kernels.h"
#include "compute/backend/cpu/scratch_arena.h"

namespace fourierkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Rows (a query and a head) that share the rebuilding of a tile; bounds the scores of a thread.
constexpr int kMaxRows = 512;
// Tiles are taken together until their rows suffice for a matrix product.
constexpr int kLinesPerProduct = 64;

int Padded(int n) { return (n + 15) / 16 * 16; }

// c[m][n] = a[m][k] b (or b transposed, then [n][k]), added to c if `add`. Row strides last.
void MatMul(const float* a, int m, int k, const float* b, bool transposed, int n, float* c,
            bool add, int64_t a_stride, int64_t b_stride, int64_t c_stride) {
  if (m == 0 || n == 0 || k == 0) return;
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, m, n, k, 1.0f, a,
              static_cast<int>(a_stride), b, static_cast<int>(b_stride), add ? 1.0f : 0.0f, c,
              static_cast<int>(c_stride));
}

// Rows of one KV head over some tiles.
struct Item {
  int head = 0;
  int first_row = 0;  // of the head's queries * group rows
  int rows = 0;
  int64_t first_tile = 0;
  int64_t last_tile = 0;
};

// Softmax state of an item, in units of log 2 and not normalised.
struct Partial {
  std::vector<float> out;  // [rows][head_dim]
  std::vector<float> max, sum;
};

// How K or V of a head takes part: through its states, or rebuilt.
struct Side {
  Side(const SequenceMiddle& middle, int h, int rows)
      : head(middle.head(h)),
        spectral(static_cast<int>(middle.channels(h).spectral.size())),
        resident(static_cast<int>(middle.channels(h).resident.size())),
        states(middle.basis().states()) {
    const double work = middle.basis().WorkPerToken();
    through_states = spectral > 0 && rows * work < spectral * (work + rows);
    width = through_states ? states : spectral;
  }

  const SequenceMiddle::Head& head;
  int spectral;
  int resident;
  int states;
  bool through_states = false;
  int width = 0;  // what stands for the spectral channels in a row
};

class Worker {
 public:
  Worker(const SequenceMiddle& k, const SequenceMiddle& v, int query_heads, float scale,
         const float* q)
      : k_(k), v_(v), basis_(k.basis()), query_heads_(query_heads), q_(q) {
    dim_ = k.part().geometry.head_dim;
    group_ = query_heads / k.part().geometry.kv_heads;
    scale_ = scale * static_cast<float>(std::numbers::log2e);
  }

  // Where row `row` of KV head `head` stands in q and out, in vectors of head_dim.
  int64_t VectorOf(int head, int row) const {
    return int64_t{row / group_} * query_heads_ + head * group_ + row % group_;
  }

  Partial Run(const Item& item) {
    const Side k(k_, item.head, item.rows), v(v_, item.head, item.rows);
    const int rows = item.rows, tile_tokens = basis_.tile_tokens();
    const int64_t tokens = k_.tokens();
    const int tiles_at_once = std::clamp(kLinesPerProduct / rows, 1, 16);
    const int span = tiles_at_once * tile_tokens;
    arena_.Reset();
    LoadQueries(item, k);
    // A row of out: the spectral part, then the resident one.
    const int spectral_width = Padded(v.width), width = spectral_width + Padded(v.resident);
    float* out = arena_.Take<float>(int64_t{rows} * width);
    std::fill_n(out, int64_t{rows} * width, 0.0f);
    float* scores = arena_.Take<float>(int64_t{rows} * span);
    const int rebuilt_rows = std::max({k.spectral, v.spectral, k.resident, v.resident, 1});
    float* rebuilt = arena_.Take<float>(int64_t{rebuilt_rows} * span);

    Partial partial;
    partial.max.assign(rows, -kInfinity);
    partial.sum.assign(rows, 0.0f);
    for (int64_t tile = item.first_tile; tile < item.last_tile; tile += tiles_at_once) {
      const int tiles = static_cast<int>(std::min<int64_t>(tiles_at_once, item.last_tile - tile));
      const int padded = tiles * tile_tokens;
      const int64_t first = tile * tile_tokens;
      const int count = static_cast<int>(std::min<int64_t>(padded, tokens - first));
      if (k.through_states) {
        basis_.Evaluate(spectral_q_, rows, tile, tiles, scores, scratch_);
      } else if (k.spectral > 0) {
        basis_.Evaluate(k.head.coefficients.data(), k.spectral, tile, tiles, rebuilt, scratch_);
        MatMul(spectral_q_, rows, k.spectral, rebuilt, false, padded, scores, false, k.spectral,
               padded, padded);
      } else {
        std::fill_n(scores, int64_t{rows} * padded, 0.0f);
      }
      WidenResidents(k, first, count, rebuilt);
      MatMul(resident_q_, rows, k.resident, rebuilt, false, count, scores, true, k.resident, count,
             padded);
      for (int i = 0; i < rows; ++i) {
        float* row = scores + int64_t{i} * padded;
        for (int t = 0; t < count; ++t) row[t] += shift_[i];
        cpu::SoftmaxStep(row, count, padded, &partial.max[i], &partial.sum[i],
                         out + int64_t{i} * width, width);
      }
      if (v.through_states) {
        states_.assign(int64_t{rows} * v.states, 0.0f);
        basis_.Project(scores, rows, tile, tiles, states_.data(), scratch_);
        for (int i = 0; i < rows; ++i) {
          const float* from = states_.data() + int64_t{i} * v.states;
          float* to = out + int64_t{i} * width;
          for (int s = 0; s < v.states; ++s) to[s] += from[s];
        }
      } else if (v.spectral > 0) {
        basis_.Evaluate(v.head.coefficients.data(), v.spectral, tile, tiles, rebuilt, scratch_);
        MatMul(scores, rows, padded, rebuilt, true, v.spectral, out, true, padded, padded, width);
      }
      WidenResidents(v, first, count, rebuilt);
      MatMul(scores, rows, count, rebuilt, true, v.resident, out + spectral_width, true, padded,
             count, width);
    }
    Finish(item, v, out, spectral_width, width, &partial);
    return partial;
  }

 private:
  // The rows' queries, scaled, as each kind of channel needs them.
  void LoadQueries(const Item& item, const Side& k) {
    const SequenceHead& channels = k_.channels(item.head);
    float* spectral = arena_.Take<float>(int64_t{item.rows} * k.spectral);
    float* resident = arena_.Take<float>(int64_t{item.rows} * k.resident);
    shift_.assign(item.rows, 0.0f);
    for (int i = 0; i < item.rows; ++i) {
      const float* q = q_ + VectorOf(item.head, item.first_row + i) * dim_;
      for (int j = 0; j < k.spectral; ++j) {
        float value = scale_ * q[channels.spectral[j]];
        if (!k.head.gain.empty()) {
          shift_[i] += value * k.head.shift[j];
          value *= k.head.gain[j];
        }
        spectral[int64_t{i} * k.spectral + j] = value;
      }
      for (int j = 0; j < k.resident; ++j) {
        resident[int64_t{i} * k.resident + j] = scale_ * q[channels.resident[j]];
      }
    }
    spectral_q_ = spectral;
    resident_q_ = resident;
    if (!k.through_states) return;
    float* states = arena_.Take<float>(int64_t{item.rows} * k.states);
    MatMul(spectral, item.rows, k.spectral, k.head.coefficients.data(), false, k.states, states,
           false, k.spectral, k.states, k.states);
    spectral_q_ = states;
  }

  // [resident][count] floats from token `first` on.
  void WidenResidents(const Side& side, int64_t first, int count, float* to) const {
    for (int j = 0; j < side.resident; ++j) {
      cpu::KvToFloats(side.head.residents.get() + j * basis_.period() + first, count,
                      KvDtype::kBf16, to + int64_t{j} * count);
    }
  }

  // From rows of `out` to vectors of head_dim.
  void Finish(const Item& item, const Side& v, const float* out, int spectral_width, int width,
              Partial* partial) {
    const SequenceHead& channels = v_.channels(item.head);
    partial->out.resize(int64_t{item.rows} * dim_);
    std::vector<float> spectral(int64_t{item.rows} * v.spectral);
    if (v.through_states) {
      MatMul(out, item.rows, v.states, v.head.coefficients.data(), true, v.spectral,
             spectral.data(), false, width, v.states, v.spectral);
    } else {
      for (int i = 0; i < item.rows; ++i) {
        std::copy_n(out + int64_t{i} * width, v.spectral,
                    spectral.data() + int64_t{i} * v.spectral);
      }
    }
    for (int i = 0; i < item.rows; ++i) {
      float* to = partial->out.data() + int64_t{i} * dim_;
      for (int j = 0; j < v.spectral; ++j) {
        float value = spectral[int64_t{i} * v.spectral + j];
        if (!v.head.gain.empty()) {
          value = v.head.gain[j] * value + v.head.shift[j] * partial->sum[i];
        }
        to[channels.spectral[j]] = value;
      }
      const float* resident = out + int64_t{i} * width + spectral_width;
      for (int j = 0; j < v.resident; ++j) to[channels.resident[j]] = resident[j];
    }
  }

  const SequenceMiddle& k_;
  const SequenceMiddle& v_;
  const SequenceBasis& basis_;
  const int query_heads_;
  const float* q_;
  int dim_ = 0;
  int group_ = 0;
  float scale_ = 0;  // with log2(e)

  ScratchArena arena_;
  SequenceBasis::Scratch scratch_;
  std::vector<float> states_, shift_;
  const float* spectral_q_ = nullptr;  // [rows][states] or [rows][spectral]
  const float* resident_q_ = nullptr;  // [rows][resident]
};

}  // namespace

void AttendToMiddle(const SequenceMiddle& k, const SequenceMiddle& v, int queries, int query_heads,
                    float scale, const float* q, float* out, float* lse, ThreadPool& pool) {
  const KvGeometry& g = k.part().geometry;
  const int rows = queries * (query_heads / g.kv_heads);
  const int row_blocks = (rows + kMaxRows - 1) / kMaxRows;
  const int64_t tiles = k.basis().TilesFor(k.tokens());
  // About two items per thread, so that a slow one does not hold up the others.
  const int64_t wanted = 2 * pool.threads();
  const int64_t pieces = std::clamp<int64_t>(wanted / (g.kv_heads * row_blocks), 1, tiles);
  std::vector<Item> items;
  for (int h = 0; h < g.kv_heads; ++h) {
    for (int b = 0; b < row_blocks; ++b) {
      for (int64_t p = 0; p < pieces; ++p) {
        const int first = b * kMaxRows;
        items.push_back({h, first, std::min(kMaxRows, rows - first), tiles * p / pieces,
                         tiles * (p + 1) / pieces});
      }
    }
  }
  std::vector<Partial> partials(items.size());
  std::deque<Worker> workers;  // they cannot be moved
  for (int i = 0; i < pool.threads(); ++i) workers.emplace_back(k, v, query_heads, scale, q);
  pool.ParallelFor(static_cast<int64_t>(items.size()),
                   [&](int64_t i, int thread) { partials[i] = workers[thread].Run(items[i]); });

  // The pieces of a block of rows follow each other.
  for (size_t first = 0; first < items.size(); first += pieces) {
    const Item& item = items[first];
    for (int i = 0; i < item.rows; ++i) {
      float max = -kInfinity;
      for (int64_t p = 0; p < pieces; ++p) max = std::max(max, partials[first + p].max[i]);
      const int64_t vector = workers[0].VectorOf(item.head, item.first_row + i);
      float* to = out + vector * g.head_dim;
      std::fill_n(to, g.head_dim, 0.0f);
      float sum = 0;
      for (int64_t p = 0; p < pieces; ++p) {
        const Partial& partial = partials[first + p];
        const float weight = std::exp2(partial.max[i] - max);
        sum += weight * partial.sum[i];
        for (int d = 0; d < g.head_dim; ++d) {
          to[d] += weight * partial.out[int64_t{i} * g.head_dim + d];
        }
      }
      for (int d = 0; d < g.head_dim; ++d) to[d] /= sum;
      lse[vector] = (max + std::log2(sum)) / static_cast<float>(std::numbers::log2e);
    }
  }
}

}  // namespace fourierkv
