#include "compute/sequence/sequence_basis.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fourierkv {
namespace {

constexpr double kPi = std::numbers::pi;
constexpr int kTileSizes[] = {64, 128, 256, 512, 1024};
constexpr int kDirectTile = 256;
// What interpolation may add to the rounding of float.
constexpr double kInterpolationError = 1e-8;

// An upper bound of |J_m(x)| for m > x: DLMF 10.14.5 (Kapteyn).
double BesselBound(double m, double x) {
  const double y = x / m;
  const double w = std::sqrt(1 - y * y);
  return std::exp(m * (w + std::log(y / (1 + w))));
}

// Nodes that a tile needs where the highest frequency turns by 2 x in it.
int NodesFor(double x) {
  int m = static_cast<int>(std::ceil(x)) + 1;
  while (x > 0 && BesselBound(m, x) > kInterpolationError) ++m;
  return std::max(m, 2);
}

double HighestPhase(int64_t period, int frequencies, int tile_tokens) {
  return kPi * (frequencies - 1) * (tile_tokens - 1) / static_cast<double>(period);
}

double Work(int states, int tile_tokens, int nodes) {
  if (nodes == tile_tokens) return states;
  return static_cast<double>(nodes) * (states + tile_tokens) / tile_tokens;
}

// Chebyshev nodes of the first kind over the tokens [0, L - 1] of a tile.
std::vector<double> ChebyshevNodes(int tile_tokens, int count) {
  const double half = (tile_tokens - 1) / 2.0;
  std::vector<double> nodes(count);
  for (int i = 0; i < count; ++i) nodes[i] = half + half * std::cos((i + 0.5) * kPi / count);
  return nodes;
}

// Row t: the weights of the values at `nodes` in the interpolated value at token t. Second
// barycentric form (Berrut and Trefethen, 2004, section 5).
std::vector<float> InterpolationMatrix(int tile_tokens, const std::vector<double>& nodes) {
  const size_t r = nodes.size();
  std::vector<float> matrix(tile_tokens * r, 0.0f);
  std::vector<double> weights(r);
  for (int t = 0; t < tile_tokens; ++t) {
    double sum = 0;
    const auto exact = std::find(nodes.begin(), nodes.end(), static_cast<double>(t));
    for (size_t i = 0; i < r; ++i) {
      const double sign = i % 2 == 0 ? 1 : -1;
      weights[i] = exact != nodes.end() ? (nodes[i] == *exact ? 1 : 0)
                                        : sign * std::sin((i + 0.5) * kPi / r) / (t - nodes[i]);
      sum += weights[i];
    }
    for (size_t i = 0; i < r; ++i) matrix[t * r + i] = static_cast<float>(weights[i] / sum);
  }
  return matrix;
}

// c[m][n] = a[m][k] b; b is [k][n], or [n][k] if `transposed`.
void MatMul(const float* a, int64_t m, int64_t k, const float* b, bool transposed, int64_t n,
            float* c) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans,
              static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1.0f, a,
              static_cast<int>(k), b, static_cast<int>(transposed ? k : n), 0.0f, c,
              static_cast<int>(n));
}

}  // namespace

SequenceBasis::SequenceBasis(int64_t period, int frequencies)
    : period_(period), frequencies_(frequencies), tile_tokens_(kDirectTile), nodes_(kDirectTile) {
  double least = Work(states(), kDirectTile, kDirectTile);
  for (int tile : kTileSizes) {
    const int nodes = NodesFor(HighestPhase(period, frequencies, tile));
    const double work = Work(states(), tile, nodes);
    if (nodes >= tile || work >= least) continue;
    least = work;
    tile_tokens_ = tile;
    nodes_ = nodes;
  }

  std::vector<double> positions(nodes_);
  if (nodes_ < tile_tokens_) {
    positions = ChebyshevNodes(tile_tokens_, nodes_);
    interpolate_ = InterpolationMatrix(tile_tokens_, positions);
  } else {
    for (int i = 0; i < nodes_; ++i) positions[i] = i;
  }
  at_nodes_.resize(static_cast<size_t>(nodes_) * states());
  for (int i = 0; i < nodes_; ++i) {
    float* row = at_nodes_.data() + static_cast<size_t>(i) * states();
    for (int k = 0; k < frequencies_; ++k) {
      const double weight = std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(period_));
      const double angle = 2 * kPi * k * positions[i] / static_cast<double>(period_);
      row[k] = static_cast<float>(weight * std::cos(angle));
      row[frequencies_ + k] = static_cast<float>(weight * std::sin(angle));
    }
  }
  const int64_t tiles = TilesFor(period_);
  phases_.resize(static_cast<size_t>(tiles) * states());
  for (int64_t b = 0; b < tiles; ++b) TilePhases(b, phases_.data() + b * states());
}

double SequenceBasis::WorkPerToken() const { return Work(states(), tile_tokens_, nodes_); }

void SequenceBasis::TilePhases(int64_t tile, float* phases) const {
  const int64_t t = tile * tile_tokens_;
  for (int k = 0; k < frequencies_; ++k) {
    const double angle =
        2 * kPi * static_cast<double>(k * t % period_) / static_cast<double>(period_);
    phases[k] = static_cast<float>(std::cos(angle));
    phases[frequencies_ + k] = static_cast<float>(std::sin(angle));
  }
}

void SequenceBasis::Row(int64_t t, float* row) const {
  for (int k = 0; k < frequencies_; ++k) {
    const double weight = std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(period_));
    const double angle =
        2 * kPi * static_cast<double>(k * t % period_) / static_cast<double>(period_);
    row[k] = static_cast<float>(weight * std::cos(angle));
    row[frequencies_ + k] = static_cast<float>(weight * std::sin(angle));
  }
}

void SequenceBasis::Evaluate(const float* c, int rows, int64_t first_tile, int tiles, float* out,
                             Scratch& scratch) const {
  const int64_t lines = int64_t{rows} * tiles;
  scratch.states.resize(lines * states());
  for (int i = 0; i < rows; ++i) {
    const float* a = c + int64_t{i} * states();
    const float* b = a + frequencies_;
    for (int tile = 0; tile < tiles; ++tile) {
      const float* cos = phases_.data() + (first_tile + tile) * states();
      const float* sin = cos + frequencies_;
      float* to = scratch.states.data() + (int64_t{i} * tiles + tile) * states();
      for (int k = 0; k < frequencies_; ++k) {
        to[k] = a[k] * cos[k] + b[k] * sin[k];
        to[frequencies_ + k] = b[k] * cos[k] - a[k] * sin[k];
      }
    }
  }
  if (interpolate_.empty()) {
    MatMul(scratch.states.data(), lines, states(), at_nodes_.data(), true, tile_tokens_, out);
    return;
  }
  scratch.nodes.resize(lines * nodes_);
  MatMul(scratch.states.data(), lines, states(), at_nodes_.data(), true, nodes_,
         scratch.nodes.data());
  MatMul(scratch.nodes.data(), lines, nodes_, interpolate_.data(), true, tile_tokens_, out);
}

void SequenceBasis::Project(const float* x, int rows, int64_t first_tile, int tiles, float* c,
                            Scratch& scratch) const {
  const int64_t lines = int64_t{rows} * tiles;
  if (!interpolate_.empty()) {
    scratch.nodes.resize(lines * nodes_);
    MatMul(x, lines, tile_tokens_, interpolate_.data(), false, nodes_, scratch.nodes.data());
    x = scratch.nodes.data();
  }
  scratch.states.resize(lines * states());
  MatMul(x, lines, nodes_, at_nodes_.data(), false, states(), scratch.states.data());
  for (int i = 0; i < rows; ++i) {
    float* a = c + int64_t{i} * states();
    float* b = a + frequencies_;
    for (int tile = 0; tile < tiles; ++tile) {
      const float* cos = phases_.data() + (first_tile + tile) * states();
      const float* sin = cos + frequencies_;
      const float* from = scratch.states.data() + (int64_t{i} * tiles + tile) * states();
      for (int k = 0; k < frequencies_; ++k) {
        a[k] += from[k] * cos[k] - from[frequencies_ + k] * sin[k];
        b[k] += from[k] * sin[k] + from[frequencies_ + k] * cos[k];
      }
    }
  }
}

}  // namespace fourierkv
