// The three steps of kernels/sequence_basis.h, done on the CPU with its tables, against the basis.

#include "kernels/sequence_basis.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <random>
#include <vector>

#include "compute/base/bfloat16.h"
#include "compute/codec/sequence_reference.h"

namespace fourierkv::kernels {
namespace {

constexpr double kPi = std::numbers::pi;

template <typename T>
const T* At(const std::vector<uint8_t>& buffer, int32_t offset) {
  return reinterpret_cast<const T*>(buffer.data() + offset);
}

// Of sum_k a_k cos + b_k sin, without the constant.
std::vector<double> Grid(const float* weights, const std::vector<double>& states) {
  const auto frequencies = static_cast<int>(states.size() / 2);
  std::vector<double> grid(kGridCells, 0.0);
  for (int i = 0; i < kGridCells; ++i) {
    for (int k = 1; k < frequencies; ++k) {
      const double angle = 2 * kPi * (k * i % kGridCells) / kGridCells;
      grid[i] +=
          weights[k] * (states[k] * std::cos(angle) + states[frequencies + k] * std::sin(angle));
    }
  }
  return grid;
}

double AtNode(const std::vector<double>& grid, const WindowStart& start, float cells) {
  const double at = start.fraction + cells;
  const int first = static_cast<int>(std::ceil(at - kKernelCells / 2.0));
  double sum = 0;
  for (int j = 0; j < kKernelCells; ++j) {
    const double z = 2 * (first + j - at) / kKernelCells;
    sum += std::exp(kKernelShape * (std::sqrt(std::max(0.0, 1 - z * z)) - 1)) *
           grid[(start.cell + first + j + kGridCells) % kGridCells];
  }
  return sum;
}

TEST(SequenceBasis, GivesTokensFromStates) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const struct {
    int64_t period;
    int frequencies, window_tokens, nodes;
  } cases[] = {{1024, 512, 64, 64},   {1025, 512, 64, 64},     {3100, 512, 64, 48},
               {9001, 512, 64, 32},   {17011, 512, 64, 16},    {31744, 512, 128, 16},
               {70001, 512, 256, 16}, {1 << 20, 512, 256, 16}, {128, 8, 64, 32},
               {1000, 8, 256, 16},    {5000, 64, 128, 16}};
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << "period " << c.period << ", F " << c.frequencies);
    std::vector<uint8_t> buffer;
    const SequenceBasisView view = BuildSequenceBasis(c.period, c.frequencies, &buffer);
    ASSERT_EQ(view.period, c.period);
    ASSERT_EQ(view.window_tokens, c.window_tokens);
    ASSERT_EQ(view.nodes, c.nodes);
    ASSERT_EQ(view.bytes, static_cast<int64_t>(buffer.size()));
    std::vector<double> states(2 * c.frequencies);
    for (double& x : states) x = normal(random);
    const auto* weights = At<float>(buffer, view.weights);
    const auto* cells = At<float>(buffer, view.node_cells);
    const auto* starts = At<WindowStart>(buffer, view.starts);
    const auto* to_tokens = At<uint16_t>(buffer, view.to_tokens);
    const auto* to_nodes = At<uint16_t>(buffer, view.to_nodes);
    const std::vector<double> grid = Grid(weights, states);
    const SequenceScope scope = {.frequencies = c.frequencies};
    const int64_t windows = view.WindowsFor(c.period);
    double error = 0, energy = 0;
    for (const int64_t window : {int64_t{0}, windows / 3, windows - 1}) {
      std::vector<double> nodes, tokens(view.window_tokens, 0.0);
      for (int i = 0; i < view.nodes; ++i) nodes.push_back(AtNode(grid, starts[window], cells[i]));
      // As A operands of tensor cores: (row g, columns 2t, 2t+1), (row g+8, same), (row g, columns
      // 2t+8, 2t+9), (row g+8, same), columns of lane t being nodes 4t .. 4t+3.
      std::vector<std::vector<uint16_t>> matrix(view.window_tokens,
                                                std::vector<uint16_t>(view.nodes));
      size_t i = 0;
      for (int panel = 0; panel < view.window_tokens; panel += kPanelTokens) {
        for (int step = 0; step < view.nodes; step += kNodeStep) {
          for (int m = 0; m < 4; ++m) {
            for (int lane = 0; lane < 32; ++lane) {
              for (int part = 0; part < 4; ++part) {
                const int g = lane / 4, t = lane % 4;
                const int token = panel + 8 * (g / 2) + 32 * (g % 2) + 2 * m + part % 2;
                const int node = step + 4 * t + 2 * (part / 2);
                matrix[token][node] = to_tokens[i++];
                matrix[token][node + 1] = to_tokens[i++];
              }
            }
          }
        }
      }
      i = 0;
      for (int panel = 0; panel < view.window_tokens; panel += kPanelTokens) {
        for (int step = 0; step < view.nodes; step += kNodeStep) {
          for (int m = 0; m < 4; ++m) {
            for (int lane = 0; lane < 32; ++lane) {
              for (int part = 0; part < 4; ++part) {
                const int g = lane / 4, t = lane % 4;
                const int token = panel + 8 * t + 2 * m + part / 2;
                const int node = step + g + 8 * (part % 2);
                ASSERT_EQ(to_nodes[i++], matrix[token][node]) << token << ", " << node;
                ASSERT_EQ(to_nodes[i++], matrix[token + 32][node]) << token << ", " << node;
              }
            }
          }
        }
      }
      for (int t = 0; t < view.window_tokens && window * view.window_tokens + t < c.period; ++t) {
        double token = 0, expected = 0;
        for (int n = 0; n < view.nodes; ++n) token += Fp16ToFloat(matrix[t][n]) * nodes[n];
        for (int s = 0; s < 2 * c.frequencies; ++s) {
          if (s == 0) continue;  // the constant takes no part
          expected += states[s] * reference::SequenceBasisValue(scope, c.period, s,
                                                                window * view.window_tokens + t);
        }
        error += std::pow(token - expected, 2);
        energy += std::pow(expected, 2);
      }
    }
    // Binary16 weights: 2^-12 of each.
    EXPECT_LT(std::sqrt(error / energy), 5e-4);
    EXPECT_NEAR(weights[0], 1 / std::sqrt(static_cast<double>(c.period)), 1e-7);
  }
}

TEST(SequenceBasis, RefusesWhatKernelsCannotTake) {
  std::vector<uint8_t> buffer;
  EXPECT_EQ(BuildSequenceBasis(4096, 0, &buffer).period, 0);
  EXPECT_EQ(BuildSequenceBasis(4096, 12, &buffer).period, 0);
  EXPECT_EQ(BuildSequenceBasis(4096, 520, &buffer).period, 0);
  EXPECT_EQ(BuildSequenceBasis(1023, 512, &buffer).period, 0);
  EXPECT_EQ(BuildSequenceBasis(127, 8, &buffer).period, 0);
  EXPECT_EQ(BuildSequenceBasis((1 << 20) + 1, 512, &buffer).period, 0);
}

}  // namespace
}  // namespace fourierkv::kernels
