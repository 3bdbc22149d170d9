// The basis of a whole sequence as the attention kernels apply it: the transform of 2 F states to n
// tokens in three steps, none of which needs the n x 2 F matrix. docs/kernels_faithful.md has the
// reasons and the costs.
//
//   1. states -> grid     weights, then one inverse real FFT of kGridCells points over a period
//   2. grid -> nodes      kKernelCells neighbours of each Chebyshev node of each window of L tokens
//   3. nodes -> tokens    one L x r matrix that all windows share
//
// Steps 1 and 2 are a non-uniform FFT: with a kernel phi of compact support and Fourier transform
// phi^, sum_i phi(u - i) g(i) = sum_k c_k e^(2 pi i k u / N) if g has the coefficients
// c_k / phi^(k / N), but for aliases, which the kernel makes small because N is four times F. phi
// is the "exponential of semicircle" of Barnett, Magland and af Klinteberg (2019), arXiv
// 1808.06736. Step 3 is interpolation as in compute/sequence/sequence_basis.h.

#pragma once

#include <cstdint>
#include <vector>

namespace fourierkv::kernels {

inline constexpr int kMaxFrequencies = 512;
inline constexpr int kGridCells = 2048;   // N
inline constexpr int kLeastPeriod = 128;  // at least two windows: none overlaps itself on the grid
inline constexpr int kKernelCells = 6;    // support of phi
inline constexpr int kPanelTokens = 64;   // what a warp takes at a time; divides every L
inline constexpr int kNodeStep = 16;      // divides every r

// phi(z) = exp(kKernelShape (sqrt(1 - (2 z / kKernelCells)^2) - 1)), 0 outside.
inline constexpr float kKernelShape = 2.3f * kKernelCells;

// Where a window begins, in cells of the grid: token w L stands at w L N / P.
struct WindowStart {
  int32_t cell;    // 0 .. N - 1 (and beyond P: modulo N)
  float fraction;  // 0 <= fraction < 1
};

// Tables of one period. Offsets are bytes from `data`.
struct SequenceBasisView {
  int32_t period;         // P
  int32_t frequencies;    // F
  int32_t window_tokens;  // L: 64, 128 or 256
  int32_t nodes;          // r of a window: 16, 32, 48 or, the tokens themselves, 64
  const uint8_t* data;    // device memory, 16-byte aligned
  int64_t bytes;
  int32_t weights;     // float [F]: of state k and F + k, 1 / phi^ and the basis' own factor
  int32_t node_cells;  // float [r]: nodes, in cells from the window's start, increasing
  int32_t starts;      // WindowStart [ceil(P / L)]
  // The L x r matrix as A operands of m16n8k16, binary16, for one lane after the other: of each
  // panel of 64 tokens and each step of 16 nodes four operands (sequence_tokens.cu). Tokens are
  // rows in one, nodes in the other.
  int32_t to_tokens;
  int32_t to_nodes;

  int64_t WindowsFor(int64_t tokens) const { return (tokens + window_tokens - 1) / window_tokens; }
  // Nodes of all windows that `tokens` tokens of the middle touch.
  int64_t NodesFor(int64_t tokens) const { return WindowsFor(tokens) * nodes; }
};

// Fills `buffer`, which is to be copied to device memory, and everything of the view but `data`.
// Requires 8 <= frequencies <= kMaxFrequencies, a multiple of 8, and 2 frequencies <= period <=
// 2^20; otherwise returns a view of period 0.
SequenceBasisView BuildSequenceBasis(int64_t period, int frequencies, std::vector<uint8_t>* buffer);

}  // namespace fourierkv::kernels
