#include "kernels/attention_basis.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "kernels/attention_program.h"
#include "kernels/half_bits.h"

namespace fourierkv::kernels {
namespace {

constexpr double kPi = 3.14159265358979323846;

uint16_t BasisBits(const PartView& part, int m, int token, bool weights, bool odd) {
  const float factor = odd ? 16.0f : 1.0f;
  if (m == 0) return weights ? HalfBits(factor) : 0;
  if (m >= part.columns) return 0;
  return HalfBits(part.basis[static_cast<int64_t>(m) * part.segment_tokens + token] * factor);
}

// The basis as A operands, in the order in which lanes read them: [unit][block][tile][lane][regs].
class BasisTables {
 public:
  BasisTables(const PartView& part, int blocks) : part_(part), blocks_(blocks) {}

  // Tile (b, j): rows 0-7 are tokens (q = 4 row + b, k = 2 j), rows 8-15 those of k = 2 j + 1;
  // columns are coefficients.
  std::vector<uint32_t> Scores() const {
    std::vector<uint32_t> table;
    ForEachTile([&](int unit, int block, int b, int j, int r, int c) {
      for (int half = 0; half < Regs() / 2; ++half) {  // coefficients 0-7, then 8-15
        for (int odd = 0; odd < 2; ++odd) {
          const int m = 16 * block + 8 * half + 2 * c;
          table.push_back(Pair(Value(unit, 4 * r + b, 2 * j + odd, m, false),
                               Value(unit, 4 * r + b, 2 * j + odd, m + 1, false)));
        }
      }
    });
    return table;
  }

  // Tile (b, kk): rows are coefficients, columns tokens: lane c has (q, kk), (q, kk + 4) of
  // q = 8 c + b, then of q = 8 c + 4 + b.
  std::vector<uint32_t> Weights() const {
    std::vector<uint32_t> table;
    ForEachTile([&](int unit, int block, int b, int kk, int r, int c) {
      for (int next = 0; next < 2; ++next) {
        for (int half = 0; half < Regs() / 2; ++half) {
          const int m = 16 * block + 8 * half + r;
          const int q = 8 * c + 4 * next + b;
          table.push_back(Pair(Value(unit, q, kk, m, true), Value(unit, q, kk + 4, m, true)));
        }
      }
    });
    return table;
  }

 private:
  int Regs() const { return blocks_ == 0 ? 2 : 4; }

  template <typename Function>
  void ForEachTile(Function function) const {
    const int units = std::max(1, part_.segment_tokens / kUnitTokens);
    for (int unit = 0; unit < units; ++unit) {
      for (int block = 0; block < std::max(1, blocks_); ++block) {
        for (int tile = 0; tile < 16; ++tile) {
          for (int lane = 0; lane < 32; ++lane) {
            function(unit, block, tile / 4, tile % 4, lane / 4, lane % 4);
          }
        }
      }
    }
  }

  uint16_t Value(int unit, int q, int k, int m, bool weights) const {
    const int stride = part_.segment_tokens / 8;
    if (q >= stride) return 0;  // S = 128
    return BasisBits(part_, m, stride * k + 32 * unit + q, weights, k % 2 == 1);
  }

  static uint32_t Pair(uint16_t low, uint16_t high) {
    return low | static_cast<uint32_t>(high) << 16;
  }

  const PartView& part_;
  const int blocks_;
};

// The first 8 columns of a sinusoidal basis by phases: column m of token t = 32 k + q is
// cos(32 k w) C(q) - sin(32 k w) S(q), where C and S are the column and its quadrature over the
// first 32 tokens. With their values, the basis needs a sixteenth of the table
// (attention_uniform.cuh).
struct Phases {
  double frequency = 0;  // w, radians per token
  double c[32] = {};
  double s[32] = {};
};

// Column m of a dct2 or dft basis (docs/math.md, section 1).
Phases PhasesOf(const PartView& part, int m) {
  Phases phases;
  if (m >= part.columns) return phases;
  const float* column = part.basis + static_cast<int64_t>(m) * part.segment_tokens;
  const int s = part.segment_tokens;
  phases.frequency = part.sinusoids == 1 ? kPi * m / s : 2 * kPi * ((m + 1) / 2) / s;
  for (int q = 0; q < 32; ++q) {
    phases.c[q] = column[q];
    const double w = phases.frequency * (part.sinusoids == 1 ? q + 0.5 : q);
    const double size = std::sqrt((m == 0 ? 1.0 : 2.0) / s);
    // d/dt of the column, over -w: sin for a cosine, -cos for a sine.
    const bool sine = part.sinusoids == 2 && m > 0 && m % 2 == 0;
    phases.s[q] = size * (sine ? -std::cos(w) : std::sin(w));
  }
  return phases;
}

}  // namespace

std::vector<uint32_t> ScoreBasis(const PartView& part, int blocks) {
  return BasisTables(part, blocks).Scores();
}

std::vector<uint32_t> WeightBasis(const PartView& part, int blocks) {
  return BasisTables(part, blocks).Weights();
}

std::vector<uint32_t> PhaseTable(const PartView& part) {
  std::vector<Phases> columns;
  for (int m = 0; m < 8; ++m) columns.push_back(PhasesOf(part, m));
  std::fill(std::begin(columns[0].c), std::end(columns[0].c), 1.0);
  std::fill(std::begin(columns[0].s), std::end(columns[0].s), 0.0);
  columns[0].frequency = 0;
  std::vector<uint32_t> table;
  for (int b = 0; b < 4; ++b) {
    for (int lane = 0; lane < 32; ++lane) {
      const Phases& own = columns[lane / 4];
      const double turn_c = std::cos(128 * own.frequency), turn_s = std::sin(128 * own.frequency);
      for (int next = 0; next < 2; ++next) {
        const int q = 8 * (lane % 4) + 4 * next + b;
        const double c = own.c[q], s = own.s[q];
        const auto pair = [](double x, double y) {
          return HalfBits(static_cast<float>(x)) |
                 static_cast<uint32_t>(HalfBits(static_cast<float>(y))) << 16;
        };
        table.push_back(pair(c, turn_c * c - turn_s * s));
        table.push_back(pair(s, turn_s * c + turn_c * s));
      }
    }
  }
  for (const Phases& own : columns) {
    for (int k = 0; k < 4; ++k) {
      const double factor = k % 2 == 1 ? 16 : 1;
      for (const double x :
           {factor * std::cos(32 * k * own.frequency), factor * std::sin(32 * k * own.frequency)}) {
        const auto value = static_cast<float>(x);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        table.push_back(bits);
      }
    }
  }
  return table;
}

}  // namespace fourierkv::kernels
