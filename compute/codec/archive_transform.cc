#include "compute/codec/archive_transform.h"

#include <cblas.h>

#include <array>
#include <cmath>
#include <utility>

#include "compute/base/bfloat16.h"
#include "compute/codec/archive_kernels.h"
#include "compute/codec/basis.h"
#include "compute/codec/rotation.h"

namespace fourierkv {
namespace {

using Dct = std::array<float, kArchiveBlock * kArchiveBlock>;

Dct MakeDct() {
  Dct dct;
  for (int f = 0; f < kArchiveBlock; ++f) {
    for (int t = 0; t < kArchiveBlock; ++t) {
      dct[f * kArchiveBlock + t] =
          static_cast<float>(BasisValue(BasisKind::kDct2, kArchiveBlock, f, t));
    }
  }
  return dct;
}

// Callers bring their own threads; OpenBLAS must not start others beside them.
void UseOneBlasThread() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
}

// c [m][n] (rows `c_stride` apart) += or = op(a) op(b), op(a) is m x k.
struct Product {
  CBLAS_TRANSPOSE transpose_a = CblasNoTrans;
  CBLAS_TRANSPOSE transpose_b = CblasNoTrans;
  int m, n, k;
  bool add = false;

  void Run(const float* a, int a_stride, const float* b, int b_stride, float* c,
           int c_stride) const {
    cblas_sgemm(CblasRowMajor, transpose_a, transpose_b, m, n, k, 1.0f, a, a_stride, b, b_stride,
                add ? 1.0f : 0.0f, c, c_stride);
  }
};

// Working memory that a thread keeps: parts are many and alike, and fresh pages cost as much as a
// pass over them.
std::vector<float>& Scratch(size_t size, int which) {
  thread_local std::array<std::vector<float>, 3> buffers;
  std::vector<float>& buffer = buffers[which];
  if (buffer.size() < size) buffer.resize(size);
  return buffer;
}

// The channels of a head that are not all zero, out of the frequencies.
struct TimeDomain {
  std::vector<int> channels;
  const float* values;  // [tokens][channels], in steps; in the thread's scratch buffer 2
};

TimeDomain ToTimeDomain(int head_dim, int tokens, const int16_t* q) {
  UseOneBlasThread();
  const size_t size = static_cast<size_t>(tokens) * head_dim;
  float* const symbols = Scratch(size, 0).data();  // [channels][tokens]
  float* const values = Scratch(size, 2).data();
  TimeDomain result{.channels = {}, .values = values};
  for (int j = 0; j < head_dim; ++j) {
    const int16_t* from = q + static_cast<int64_t>(j) * tokens;
    if (archive::AllZero(from, tokens)) continue;
    archive::ToFloat(from, tokens, symbols + result.channels.size() * tokens);
    result.channels.push_back(j);
  }
  const int active = static_cast<int>(result.channels.size());
  if (active == 0) return result;
  const Product dct{.transpose_a = CblasTrans,
                    .transpose_b = CblasTrans,
                    .m = kArchiveBlock,
                    .n = active,
                    .k = kArchiveBlock};
  for (int t = 0; t < tokens; t += kArchiveBlock) {
    dct.Run(ArchiveDct().data(), kArchiveBlock, symbols + t, tokens,
            values + static_cast<int64_t>(t) * active, active);
  }
  return result;
}

std::vector<float> Floats(const std::vector<uint16_t>& bits) {
  std::vector<float> values;
  values.reserve(bits.size());
  for (uint16_t b : bits) values.push_back(Bf16ToFloat(b));
  return values;
}

}  // namespace

std::span<const float> ArchiveDct() {
  static const Dct kDct = MakeDct();
  return kDct;
}

RopeTables::RopeTables(std::vector<double> frequencies, int tokens)
    : frequencies_(std::move(frequencies)) {
  for (int t = 0; t < tokens; ++t) {
    for (double frequency : frequencies_) {
      base_.cos.push_back(static_cast<float>(std::cos(t * frequency)));
      base_.sin.push_back(static_cast<float>(std::sin(t * frequency)));
    }
  }
}

RopeTable RopeTables::At(int64_t first_token) const {
  const size_t half = frequencies_.size();
  std::vector<float> cos0(half), sin0(half);
  for (size_t d = 0; d < half; ++d) {
    const double angle = static_cast<double>(first_token) * frequencies_[d];
    cos0[d] = static_cast<float>(std::cos(angle));
    sin0[d] = static_cast<float>(std::sin(angle));
  }
  // Turning the rows (cos, sin) by the first angle adds it to theirs.
  RopeTable table;
  const size_t size = base_.cos.size();
  table.cos.resize(size);
  table.sin.resize(size);
  for (size_t i = 0; i < size; i += half) {
    for (size_t d = 0; d < half; ++d) {
      table.cos[i + d] = base_.cos[i + d] * cos0[d] - base_.sin[i + d] * sin0[d];
      table.sin[i + d] = base_.sin[i + d] * cos0[d] + base_.cos[i + d] * sin0[d];
    }
  }
  return table;
}

ArchiveTransform::ArchiveTransform(const ArchiveHead& head, std::span<const int16_t> rotation)
    : scaled_(!head.scale.empty()), mean_(Floats(head.mean)), step_(Floats(head.step)) {
  const size_t n = mean_.size();
  const std::vector<float> scale = scaled_ ? Floats(head.scale) : std::vector<float>(n, 1.0f);
  forward_.resize(n * n);
  inverse_.resize(n * n);
  std::vector<double> shift(n);
  for (size_t d = 0; d < n; ++d) {
    for (size_t j = 0; j < n; ++j) {
      const float u = !rotation.empty() ? RotationEntry(rotation[d * n + j]) : d == j ? 1.0f : 0.0f;
      forward_[d * n + j] = scale[d] * u / step_[j];
      inverse_[j * n + d] = step_[j] * u / scale[d];
      shift[j] += static_cast<double>(mean_[d]) * forward_[d * n + j];
    }
  }
  const double amplitude = std::sqrt(static_cast<double>(kArchiveBlock));
  for (double s : shift) shift_.push_back(static_cast<float>(amplitude * s));
}

void ArchiveTransform::Forward(int tokens, const float* x, float* y) const {
  UseOneBlasThread();
  const int n = head_dim();
  float* const rotated = Scratch(static_cast<size_t>(tokens) * n, 0).data();
  Product{.m = tokens, .n = n, .k = n}.Run(x, n, forward_.data(), n, rotated, n);
  const Product dct{.transpose_a = CblasTrans,
                    .transpose_b = CblasTrans,
                    .m = n,
                    .n = kArchiveBlock,
                    .k = kArchiveBlock};
  for (int t = 0; t < tokens; t += kArchiveBlock) {
    dct.Run(rotated + static_cast<int64_t>(t) * n, n, ArchiveDct().data(), kArchiveBlock, y + t,
            tokens);
    for (int j = 0; j < n; ++j) y[static_cast<int64_t>(j) * tokens + t] -= shift_[j];
  }
}

void ArchiveTransform::Inverse(int tokens, const int16_t* q, float* x) const {
  const int n = head_dim();
  const TimeDomain y = ToTimeDomain(n, tokens, q);
  for (int t = 0; t < tokens; ++t) std::copy(mean_.begin(), mean_.end(), x + int64_t{t} * n);
  const int active = static_cast<int>(y.channels.size());
  if (active == 0) return;
  float* const rows = Scratch(static_cast<size_t>(n) * n, 1).data();  // [active][D]
  for (int i = 0; i < active; ++i)
    std::copy_n(inverse_row(y.channels[i]), n, rows + int64_t{i} * n);
  Product{.m = tokens, .n = n, .k = active, .add = true}.Run(y.values, active, rows, n, x, n);
}

void ArchiveTransform::InverseRotated(int tokens, const int16_t* q, float* x) const {
  const int n = head_dim();
  const TimeDomain y = ToTimeDomain(n, tokens, q);
  const float amplitude = std::sqrt(static_cast<float>(kArchiveBlock));
  std::vector<float> mean(n);  // rotated
  for (int j = 0; j < n; ++j) mean[j] = shift_[j] * step_[j] / amplitude;
  const size_t active = y.channels.size();
  for (int t = 0; t < tokens; ++t) {
    float* const row = x + int64_t{t} * n;
    const float* const from = y.values + t * active;
    std::copy(mean.begin(), mean.end(), row);
    for (size_t i = 0; i < active; ++i) row[y.channels[i]] += from[i] * step_[y.channels[i]];
  }
}

double ArchiveTransform::SquaredError(int tokens, const float* y, const int16_t* q) const {
  const int n = head_dim();
  if (!scaled_) {  // orthonormal but for the steps
    double sum = 0;
    for (int j = 0; j < n; ++j) {
      const int64_t row = static_cast<int64_t>(j) * tokens;
      const double step = step_[j];
      sum += step * step * archive::SquaredDifference(y + row, q + row, tokens);
    }
    return sum;
  }
  const size_t size = static_cast<size_t>(tokens) * n;
  float* const difference = Scratch(size, 0).data();
  float* const error = Scratch(size, 1).data();
  archive::Subtract(y, q, static_cast<int64_t>(size), difference);
  UseOneBlasThread();
  Product{.transpose_a = CblasTrans, .m = tokens, .n = n, .k = n}.Run(difference, tokens,
                                                                      inverse_.data(), n, error, n);
  return archive::SumOfSquares(error, static_cast<int64_t>(size));
}

}  // namespace fourierkv
