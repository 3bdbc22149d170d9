#include "compute/quality/channel_statistics.h"

#include <cblas.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {
namespace {

constexpr int64_t kMinSegments = 3;

// to += sign * X^T X for X [rows][channels]; only the upper triangle is kept up to date.
void AddGram(const double* x, int rows, int channels, double sign, Moment* to) {
  cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, channels, rows, sign, x, channels, 1.0,
              to->data(), channels);
}

// Divides by `count` and fills in the lower triangle.
void Finish(double count, int channels, Moment* moment) {
  for (int i = 0; i < channels; ++i) {
    for (int j = i; j < channels; ++j) {
      double& upper = (*moment)[static_cast<size_t>(i) * channels + j];
      upper /= count;
      (*moment)[static_cast<size_t>(j) * channels + i] = upper;
    }
  }
}

// Columns [first, first + columns) of x [rows][stride].
std::vector<double> Columns(const float* x, int64_t rows, int64_t stride, int64_t first,
                            int columns) {
  std::vector<double> copy;
  copy.reserve(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = x + i * stride + first;
    copy.insert(copy.end(), row, row + columns);
  }
  return copy;
}

class Collector {
 public:
  Collector(const LlamaModel& model, const StatisticsOptions& options)
      : config_(model.config()), options_(options) {
    const Moment zero(static_cast<size_t>(config_.head_dim) * config_.head_dim, 0.0);
    result_.geometry = config_.Geometry();
    result_.options = options;
    result_.heads.resize(static_cast<size_t>(config_.layers) * config_.kv_heads * 2);
    for (HeadStatistics& head : result_.heads) {
      head = {zero, std::vector<Moment>(options.coefficients.size(), zero), zero};
    }
    const int most = options.coefficients.back();
    basis_.resize(static_cast<size_t>(most) * options.segment_tokens);
    for (int m = 0; m < most; ++m) {
      for (int t = 0; t < options.segment_tokens; ++t) {
        basis_[static_cast<size_t>(m) * options.segment_tokens + t] =
            BasisValue(options.basis, options.segment_tokens, m, t);
      }
    }
    for (int layer = 0; layer < config_.layers; ++layer) {
      AddOutputWeights(layer, model.layers()[layer]);
    }
  }

  // One segment of one layer: q [S][query_heads][D], k and v [S][kv_heads][D].
  void Add(int layer, const float* q, const float* k, const float* v) {
    const int dim = config_.head_dim;
    const int segment = options_.segment_tokens;
    for (int head = 0; head < config_.kv_heads; ++head) {
      for (const Part part : kParts) {
        AddSegment(Columns(part == Part::kK ? k : v, segment, int64_t{config_.kv_heads} * dim,
                           int64_t{head} * dim, dim),
                   &Of(layer, head, part));
      }
    }
    for (int head = 0; head < config_.query_heads; ++head) {
      const auto x =
          Columns(q, segment, int64_t{config_.query_heads} * dim, int64_t{head} * dim, dim);
      AddGram(x.data(), segment, dim, 1, &Of(layer, head / group(), Part::kK).sensitivity);
    }
    if (layer == 0) result_.tokens += segment;
  }

  ChannelStatistics Take() {
    const auto tokens = static_cast<double>(result_.tokens);
    for (size_t i = 0; i < result_.heads.size(); ++i) {
      HeadStatistics& head = result_.heads[i];
      Finish(tokens, config_.head_dim, &head.energy);
      for (Moment& residual : head.residual) Finish(tokens, config_.head_dim, &residual);
      const bool is_k = i % 2 == static_cast<size_t>(Part::kK);
      Finish(is_k ? tokens : 1, config_.head_dim, &head.sensitivity);
    }
    return std::move(result_);
  }

 private:
  int group() const { return config_.query_heads / config_.kv_heads; }

  HeadStatistics& Of(int layer, int head, Part part) {
    return result_.heads[(static_cast<size_t>(layer) * config_.kv_heads + head) * 2 +
                         static_cast<size_t>(part)];
  }

  void AddOutputWeights(int layer, const LlamaLayer& weights) {
    const int dim = config_.head_dim;
    const int64_t stride = int64_t{config_.query_heads} * dim;
    for (int head = 0; head < config_.query_heads; ++head) {
      const auto w =
          Columns(weights.o.data(), config_.hidden_size, stride, int64_t{head} * dim, dim);
      AddGram(w.data(), static_cast<int>(config_.hidden_size), dim, 1,
              &Of(layer, head / group(), Part::kV).sensitivity);
    }
  }

  // The basis is orthonormal: the residual's Gram matrix is that of x less that of the
  // coefficients.
  void AddSegment(const std::vector<double>& x, HeadStatistics* to) {
    const int dim = config_.head_dim;
    const int segment = options_.segment_tokens;
    const int most = options_.coefficients.back();
    std::vector<double> coefficients(static_cast<size_t>(most) * dim);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, most, dim, segment, 1.0, basis_.data(),
                segment, x.data(), dim, 0.0, coefficients.data(), dim);
    AddGram(x.data(), segment, dim, 1, &to->energy);
    for (size_t i = 0; i < options_.coefficients.size(); ++i) {
      AddGram(x.data(), segment, dim, 1, &to->residual[i]);
      AddGram(coefficients.data(), options_.coefficients[i], dim, -1, &to->residual[i]);
    }
  }

  const ModelConfig& config_;
  const StatisticsOptions& options_;
  std::vector<double> basis_;  // [most coefficients][S]
  ChannelStatistics result_;
};

absl::Status CheckOptions(const StatisticsOptions& options, size_t tokens) {
  if (options.segment_tokens < 1 || options.coefficients.empty()) {
    return absl::InvalidArgumentError("statistics need segments and a list of coefficients");
  }
  int least = 1;
  const int most = options.basis == BasisKind::kMean ? 1 : options.segment_tokens;
  for (const int m : options.coefficients) {
    if (m < least || m > most) {
      return absl::InvalidArgumentError(
          absl::StrCat("coefficients has ", m, "; they must increase, from 1 to ", most));
    }
    least = m + 1;
  }
  if (tokens / options.segment_tokens < kMinSegments) {
    return absl::InvalidArgumentError(absl::StrCat(tokens, " calibration tokens are too few: give ",
                                                   kMinSegments * options.segment_tokens,
                                                   " or more"));
  }
  return absl::OkStatus();
}

}  // namespace

double Along(const Moment& a, std::span<const double> u) {
  double sum = 0;
  for (size_t i = 0; i < u.size(); ++i) {
    double row = 0;
    for (size_t j = 0; j < u.size(); ++j) row += a[i * u.size() + j] * u[j];
    sum += u[i] * row;
  }
  return sum;
}

absl::StatusOr<ChannelStatistics> CollectStatistics(std::shared_ptr<const LlamaModel> model,
                                                    std::shared_ptr<ThreadPool> pool,
                                                    ComputeBackend* backend,
                                                    std::span<const int32_t> tokens,
                                                    const StatisticsOptions& options) {
  if (absl::Status s = CheckOptions(options, tokens.size()); !s.ok()) return s;
  const int segment = options.segment_tokens;
  tokens = tokens.first(tokens.size() / segment * segment);
  auto cache = DenseKvCache::Create(model->config().Geometry(), backend,
                                    static_cast<int64_t>(tokens.size()));
  if (!cache.ok()) return cache.status();

  Collector collector(*model, options);
  ForwardOptions forward;
  forward.on_qkv = [&](int layer, int64_t first, int, const float* q, const float* k,
                       const float* v) {
    if (first > 0) collector.Add(layer, q, k, v);
    return absl::OkStatus();
  };
  LlamaRunner runner(model, std::move(pool));
  ForwardOutput ignored;
  absl::Status s = Prefill(runner, tokens, **cache, &ignored, segment, forward);
  if (!s.ok()) return s;
  return collector.Take();
}

}  // namespace fourierkv
