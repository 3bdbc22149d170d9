#include "kernels/sequence_basis.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/half_bits.h"

namespace fourierkv::kernels {
namespace {

constexpr double kPi = 3.14159265358979323846;
// Of the values at tokens, relative to those at nodes: less than what rounding them to binary16
// adds.
constexpr double kInterpolationError = 1e-4;

struct WindowShape {
  int tokens, nodes;
};
// From the cheapest to the one that is always exact.
constexpr WindowShape kShapes[] = {{256, 16}, {128, 16}, {64, 16}, {64, 32}, {64, 48}, {64, 64}};

// An upper bound of |J_m(x)| for m > x: DLMF 10.14.5 (Kapteyn).
double BesselBound(double m, double x) {
  const double y = x / m;
  const double w = std::sqrt(1 - y * y);
  return std::exp(m * (w + std::log(y / (1 + w))));
}

// Chebyshev coefficients of exp(i x s) on [-1, 1] are Bessel functions J_m(x).
bool Suffices(const WindowShape& shape, int64_t period, int frequencies) {
  if (shape.nodes == shape.tokens) return true;
  if (2 * shape.tokens > period) return false;
  const double x = kPi * (frequencies - 1) * (shape.tokens - 1) / static_cast<double>(period);
  return x < shape.nodes && BesselBound(shape.nodes, x) <= kInterpolationError;
}

// Chebyshev nodes of the first kind over the tokens [0, L - 1], increasing, or the tokens.
std::vector<double> NodePositions(const WindowShape& shape) {
  std::vector<double> at(shape.nodes);
  const double half = (shape.tokens - 1) / 2.0;
  for (int i = 0; i < shape.nodes; ++i) {
    at[i] = shape.nodes == shape.tokens ? i : half - half * std::cos((i + 0.5) * kPi / shape.nodes);
  }
  return at;
}

// [L][r]: the weights of the values at the nodes in the value at each token. Second barycentric
// form (Berrut and Trefethen, 2004, section 5).
std::vector<uint16_t> InterpolationMatrix(const WindowShape& shape) {
  const std::vector<double> nodes = NodePositions(shape);
  const int r = shape.nodes;
  std::vector<uint16_t> matrix(static_cast<size_t>(shape.tokens) * r, 0);
  std::vector<double> weights(r);
  for (int t = 0; t < shape.tokens; ++t) {
    uint16_t* row = matrix.data() + static_cast<size_t>(t) * r;
    const auto exact = std::find(nodes.begin(), nodes.end(), static_cast<double>(t));
    if (exact != nodes.end()) {
      row[exact - nodes.begin()] = HalfBits(1.0f);
      continue;
    }
    double sum = 0;
    for (int i = 0; i < r; ++i) {
      weights[i] = (i % 2 == 0 ? 1 : -1) * std::sin((i + 0.5) * kPi / r) / (t - nodes[i]);
      sum += weights[i];
    }
    for (int i = 0; i < r; ++i) row[i] = HalfBits(static_cast<float>(weights[i] / sum));
  }
  return matrix;
}

// phi^(f): even and smooth but for its ends, where it is tiny, so that the trapezoidal rule
// converges fast.
double KernelTransform(double frequency) {
  constexpr int kSteps = 256;
  const double half = kKernelCells / 2.0;
  double sum = 0;
  for (int i = -kSteps + 1; i < kSteps; ++i) {
    const double y = static_cast<double>(i) / kSteps;
    sum += std::exp(kKernelShape * (std::sqrt(1 - y * y) - 1)) *
           std::cos(2 * kPi * frequency * half * y);
  }
  return sum * half / kSteps;
}

// Tokens of a panel that lane (g, .) of a warp has as rows: TokenRow(g) + 0 .. 7.
int TokenRow(int g) { return 8 * (g >> 1) + 32 * (g & 1); }

template <typename T>
T* At(std::vector<uint8_t>* buffer, int32_t offset) {
  return reinterpret_cast<T*>(buffer->data() + offset);
}

void FillFragments(const WindowShape& shape, uint16_t* to_tokens, uint16_t* to_nodes) {
  const std::vector<uint16_t> matrix = InterpolationMatrix(shape);
  const auto entry = [&](int token, int node) { return matrix[token * shape.nodes + node]; };
  int64_t i = 0;  // of the pair of values
  for (int panel = 0; panel < shape.tokens; panel += kPanelTokens) {
    for (int step = 0; step < shape.nodes; step += kNodeStep) {
      for (int m = 0; m < 4; ++m) {
        for (int lane = 0; lane < 32; ++lane) {
          const int g = lane / 4, t = lane % 4;
          for (int part = 0; part < 4; ++part, ++i) {
            // Rows g and g + 8 are tokens 2 m and 2 m + 1 of the lane's, columns of lane t the
            // nodes 4 t .. 4 t + 3.
            const int token = panel + TokenRow(g) + 2 * m + part % 2;
            const int node = step + 4 * t + 2 * (part / 2);
            to_tokens[2 * i] = entry(token, node);
            to_tokens[2 * i + 1] = entry(token, node + 1);
            // Rows are nodes g and g + 8, columns the tokens 8 t + j and 32 + 8 t + j.
            const int row = step + g + 8 * (part % 2);
            const int column = panel + 8 * t + 2 * m + part / 2;
            to_nodes[2 * i] = entry(column, row);
            to_nodes[2 * i + 1] = entry(column + 32, row);
          }
        }
      }
    }
  }
}

}  // namespace

SequenceBasisView BuildSequenceBasis(int64_t period, int frequencies,
                                     std::vector<uint8_t>* buffer) {
  SequenceBasisView view = {};
  if (frequencies < 8 || frequencies > kMaxFrequencies || frequencies % 8 != 0 ||
      period < std::max(2 * frequencies, kLeastPeriod) || period > int64_t{1} << 20) {
    return view;
  }
  const WindowShape shape = *std::find_if(std::begin(kShapes), std::end(kShapes), [&](auto& s) {
    return Suffices(s, period, frequencies);
  });
  view.period = static_cast<int32_t>(period);
  view.frequencies = frequencies;
  view.window_tokens = shape.tokens;
  view.nodes = shape.nodes;
  const auto take = [&](int64_t bytes) {
    const auto offset = static_cast<int32_t>(view.bytes);
    view.bytes += (bytes + 15) / 16 * 16;
    return offset;
  };
  const int64_t windows = view.WindowsFor(period);
  const int64_t matrix_bytes = int64_t{2} * shape.tokens * shape.nodes;
  view.weights = take(int64_t{4} * frequencies);
  view.node_cells = take(int64_t{4} * shape.nodes);
  view.starts = take(static_cast<int64_t>(sizeof(WindowStart)) * windows);
  view.to_tokens = take(matrix_bytes);
  view.to_nodes = take(matrix_bytes);
  buffer->assign(view.bytes, 0);

  auto* weights = At<float>(buffer, view.weights);
  for (int k = 0; k < frequencies; ++k) {
    const double own = std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(period));
    // State 0 is a constant, which takes no part in the transform.
    weights[k] = static_cast<float>(
        k == 0 ? own : own / KernelTransform(static_cast<double>(k) / kGridCells));
  }
  const std::vector<double> nodes = NodePositions(shape);
  auto* cells = At<float>(buffer, view.node_cells);
  for (int i = 0; i < shape.nodes; ++i) {
    cells[i] = static_cast<float>(nodes[i] * kGridCells / static_cast<double>(period));
  }
  auto* starts = At<WindowStart>(buffer, view.starts);
  for (int64_t w = 0; w < windows; ++w) {
    const int64_t numerator = w * shape.tokens * kGridCells;
    starts[w].cell = static_cast<int32_t>(numerator / period % kGridCells);
    starts[w].fraction =
        static_cast<float>(static_cast<double>(numerator % period) / static_cast<double>(period));
    if (starts[w].fraction >= 1) starts[w].fraction = 0.99999994f;
  }
  FillFragments(shape, At<uint16_t>(buffer, view.to_tokens), At<uint16_t>(buffer, view.to_nodes));
  return view;
}

}  // namespace fourierkv::kernels
