// Products with the basis of a whole sequence, which is too large to keep: 32k tokens by 1024
// states are 128 MiB in float.

#pragma once

#include <cstdint>
#include <vector>

namespace fourierkv {

// The basis B of SequenceScope: rows are tokens of the middle, columns 2 F states. It is used in
// tiles of L tokens. Two facts make that cheap:
//
// - Tile b is tile 0 with the coefficients of each frequency rotated by the angle 2 pi k b L / P,
//   so only tile 0 is kept.
// - A sum of frequencies below F / P varies slowly: its values at r Chebyshev nodes of the tile
// give
//   all L by interpolation. Chebyshev coefficients of exp(i x s) on [-1, 1] are Bessel functions
//   J_m(x), which vanish faster than exponentially once m > x; with x = pi F L / P, r is a little
//   more than x. At 32k tokens and 512 frequencies that is 10 times less work than B itself.
//   Where frequencies are too dense for that, the nodes are the tokens.
//
// Everything is matrix products in float, on the calling thread. Relative errors are about 1e-6.
// Immutable; shared by threads.
class SequenceBasis {
 public:
  // Memory of one thread.
  struct Scratch {
    std::vector<float> states, nodes;
  };

  // 1 <= frequencies, 2 frequencies <= period <= kMaxSequenceTokens.
  SequenceBasis(int64_t period, int frequencies);

  int64_t period() const { return period_; }
  int frequencies() const { return frequencies_; }
  int states() const { return 2 * frequencies_; }
  int tile_tokens() const { return tile_tokens_; }  // L, a multiple of 16
  int64_t TilesFor(int64_t tokens) const { return (tokens + tile_tokens_ - 1) / tile_tokens_; }
  // Multiply-adds that one row of Evaluate or Project takes for each token.
  double WorkPerToken() const;

  // out[i] = B c[i] over the tokens of tiles [first_tile, first_tile + tiles), which may reach
  // beyond the period. c: [rows][states]; out: [rows][tiles * L].
  void Evaluate(const float* c, int rows, int64_t first_tile, int tiles, float* out,
                Scratch& scratch) const;

  // The transpose: c[i] += B^T x[i]. x: [rows][tiles * L]; c: [rows][states].
  void Project(const float* x, int rows, int64_t first_tile, int tiles, float* c,
               Scratch& scratch) const;

  // Row t of B: `states` floats.
  void Row(int64_t t, float* row) const;

 private:
  // (cos, sin) of 2 pi k b L / P for tile b: F cosines, then F sines.
  void TilePhases(int64_t tile, float* phases) const;

  const int64_t period_;
  const int frequencies_;
  int tile_tokens_ = 0;
  int nodes_ = 0;                   // r; L if the nodes are the tokens
  std::vector<float> at_nodes_;     // [r][states]: tile 0 of B at the nodes
  std::vector<float> interpolate_;  // [L][r]; empty if the nodes are the tokens
  std::vector<float> phases_;       // [tiles][2 F]
};

}  // namespace fourierkv
