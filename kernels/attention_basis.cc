#include "kernels/attention_basis.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/attention_program.h"
#include "kernels/half_bits.h"

namespace fourierkv::kernels {
namespace {

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

double Basis(const PartView& part, int m, int token) {
  return m < part.columns ? part.basis[static_cast<int64_t>(m) * part.segment_tokens + token] : 0.0;
}

// The largest value of a column, which then is a limb of kWholeLimb; 1 if all are 0.
constexpr double kWholeLimb = 127 * 256;
double Amplitude(const PartView& part, int m) {
  double largest = 0;
  for (int t = 0; t < part.segment_tokens; ++t) {
    largest = std::max(largest, std::abs(Basis(part, m, t)));
  }
  return largest == 0 ? 1 : largest;
}

struct Split {
  uint32_t high;
  uint32_t low;
};

// Two signed bytes.
Split SplitBytes(double x) {
  const int value = static_cast<int>(std::lround(x));
  const int high = (value + 128) >> 8;
  return {static_cast<uint32_t>(high) & 0xff, static_cast<uint32_t>(value - 256 * high) & 0xff};
}

uint32_t Bf16Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Two bf16.
Split SplitBf16(double x) {
  const uint32_t high = Bf16Bits(static_cast<float>(x));
  const uint32_t bits = high << 16;
  float rounded;
  std::memcpy(&rounded, &bits, sizeof(rounded));
  return {high, Bf16Bits(static_cast<float>(x - rounded))};
}

}  // namespace

std::vector<uint32_t> ScoreBasis(const PartView& part, int blocks) {
  return BasisTables(part, blocks).Scores();
}

std::vector<uint32_t> WeightBasis(const PartView& part, int blocks) {
  return BasisTables(part, blocks).Weights();
}

std::vector<uint32_t> UniformScoreBasis(const PartView& part, int bits) {
  std::vector<uint32_t> table;
  // Columns 2 c and 2 c + 1 of a row, without the constant.
  const auto value = [&](int tile, int row, int m) {
    return m == 0 ? 0.0 : Basis(part, m, UniformToken(bits, tile, row));
  };
  for (int tile = 0; tile < 16; tile += bits == 16 ? 1 : 2) {
    for (int lane = 0; lane < 32; ++lane) {
      const int m = 2 * (lane % 4);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i % 2);
        if (bits == 16) {
          const Split x = SplitBf16(value(tile, row, m)), y = SplitBf16(value(tile, row, m + 1));
          table.push_back(i < 2 ? x.high | y.high << 16 : x.low | y.low << 16);
        } else {
          const uint32_t x = HalfBits(static_cast<float>(value(tile + i / 2, row, m)));
          const uint32_t y = HalfBits(static_cast<float>(value(tile + i / 2, row, m + 1)));
          table.push_back(x | y << 16);
        }
      }
    }
  }
  return table;
}

std::vector<uint32_t> UniformWeightBasis(const PartView& part, int bits) {
  std::vector<uint32_t> table;
  double amplitude[8];
  for (int m = 0; m < 8; ++m) amplitude[m] = Amplitude(part, m);
  const auto split = [&](int m, int token) {
    if (bits == 16) return SplitBf16(m == 0 ? 1.0 : Basis(part, m, token));
    return m == 0 ? Split{1, 0} : SplitBytes(Basis(part, m, token) / amplitude[m] * kWholeLimb);
  };
  const int values = bits == 16 ? 2 : 4;  // in a word
  for (int operand = 0; operand < (bits == 16 ? 16 : 8); ++operand) {
    for (int lane = 0; lane < 32; ++lane) {
      const int m = lane / 4;
      for (int next = 0; next < 2; ++next) {
        Split words = {0, 0};
        for (int i = 0; i < values; ++i) {
          const int token = bits == 16 ? UniformToken(bits, operand, 2 * (lane % 4) + i + 8 * next)
                                       : UniformToken(bits, operand / 2 * 4 + i,
                                                      2 * (lane % 4) + next + 8 * (operand % 2));
          const Split x = split(m, token);
          words.high |= x.high << (32 / values * i);
          words.low |= x.low << (32 / values * i);
        }
        table.push_back(words.high);
        table.push_back(words.low);
      }
    }
  }
  return table;
}

std::vector<float> UniformWeightFactors(const PartView& part, int bits) {
  const double constant = 1 / std::sqrt(static_cast<double>(part.segment_tokens));
  std::vector<float> factors = {static_cast<float>(bits == 16 ? constant : constant / 256)};
  for (int m = 1; m < 8; ++m) {
    factors.push_back(bits == 16 ? 1.0f : static_cast<float>(Amplitude(part, m) / kWholeLimb));
  }
  if (bits != 16) {
    for (float& factor : factors) factor /= static_cast<float>(kWholeWeight);
  }
  return factors;
}

}  // namespace fourierkv::kernels
