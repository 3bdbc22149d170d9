#include "compute/model/calibrate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/codec/basis.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {
namespace {

constexpr int64_t kMinSegments = 3;

// Per channel of every KV head of one layer: [kv_heads * head_dim].
using ChannelValues = std::vector<double>;

struct LayerStatistics {
  ChannelValues query_energy;  // sum of q_d^2 over the query heads of the group
  ChannelValues k_lost;        // energy outside the basis
  ChannelValues v_lost;
};

// Adds what one segment of x [S][channels] loses when only its coefficients in `basis` are kept.
void AddLostEnergy(const Basis& basis, const float* x, ChannelValues* lost) {
  const size_t channels = lost->size();
  std::vector<double> coefficient(channels);
  const auto for_each_value = [&](auto&& use) {
    for (int t = 0; t < basis.segment_tokens(); ++t) {
      for (size_t d = 0; d < channels; ++d) use(t, d, static_cast<double>(x[t * channels + d]));
    }
  };
  ChannelValues energy(channels, 0.0);
  for_each_value([&](int, size_t d, double value) { energy[d] += value * value; });
  for (int m = 0; m < basis.columns(); ++m) {
    std::fill(coefficient.begin(), coefficient.end(), 0.0);
    const float* column = basis.column(m);
    for_each_value([&](int t, size_t d, double value) { coefficient[d] += column[t] * value; });
    for (size_t d = 0; d < channels; ++d) energy[d] -= coefficient[d] * coefficient[d];
  }
  for (size_t d = 0; d < channels; ++d) (*lost)[d] += std::max(0.0, energy[d]);
}

// What W_o makes of channel d: sums of squares over the query heads that read it.
ChannelValues OutputSensitivity(const ModelConfig& c, const LlamaLayer& layer) {
  const int64_t q_size = int64_t{c.query_heads} * c.head_dim;
  const int group = c.query_heads / c.kv_heads;
  ChannelValues sensitivity(static_cast<size_t>(c.kv_heads) * c.head_dim, 0.0);
  for (int64_t i = 0; i < c.hidden_size * q_size; ++i) {
    const int64_t head = (i % q_size) / c.head_dim, d = i % c.head_dim;
    sensitivity[head / group * c.head_dim + d] += static_cast<double>(layer.o[i]) * layer.o[i];
  }
  return sensitivity;
}

void AppendProduct(const ChannelValues& a, const ChannelValues& b, ChannelValues* out) {
  for (size_t i = 0; i < a.size(); ++i) out->push_back(a[i] * b[i]);
}

// How much room K or V get.
struct Shares {
  double spectral = 0;
  double precise = 0;
};

// Sorts channels [first, last) of `harm`, which covers all heads of all layers, into the bands of
// their heads: the least harmful spectral, the most harmful precise.
void Assign(const ChannelValues& harm, int first, int last, Shares shares,
            const CalibrationOptions& options, Part part, CodecProfile* profile) {
  std::vector<int> order(last - first);
  std::iota(order.begin(), order.end(), first);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return harm[a] < harm[b]; });
  const auto share = [&](double of) {
    return static_cast<size_t>(std::floor(of * static_cast<double>(order.size()) + 1e-9));
  };
  const size_t spectral = share(shares.spectral);
  const size_t precise = order.size() - std::min(order.size() - spectral, share(shares.precise));

  const KvGeometry& g = profile->geometry;
  const auto add_band = [&](size_t from, size_t to, int coefficients, int bits) {
    std::sort(order.begin() + from, order.begin() + to);
    for (size_t i = from; i < to; ++i) {
      const int head = order[i] / g.head_dim;
      std::vector<Band>& bands = profile->head(head / g.kv_heads, head % g.kv_heads, part).bands;
      const bool open =
          !bands.empty() && bands.back().coefficients == coefficients && bands.back().bits == bits;
      if (!open) bands.push_back({coefficients, bits, {}});
      bands.back().channels.push_back(static_cast<uint16_t>(order[i] % g.head_dim));
    }
  };
  add_band(0, spectral, options.coefficients, 8);
  add_band(spectral, precise, 0, options.resident_bits);
  add_band(precise, order.size(), 0, 8);
}

// The number of channels that compete for room.
int PoolSize(const KvGeometry& g, ChannelPool pool) {
  switch (pool) {
    case ChannelPool::kHead:
      return g.head_dim;
    case ChannelPool::kLayer:
      return g.head_dim * g.kv_heads;
    case ChannelPool::kModel:
      break;
  }
  return g.head_dim * g.kv_heads * g.layers;
}

absl::Status CheckOptions(const CalibrationOptions& o, size_t tokens) {
  const auto is_share = [](double x) { return x >= 0 && x <= 1; };
  for (const auto& [name, value] : {std::pair{"k_spectral", o.k_spectral},
                                    {"v_spectral", o.v_spectral},
                                    {"k_precise", o.k_precise},
                                    {"v_precise", o.v_precise}}) {
    if (!is_share(value)) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be 0 to 1"));
    }
  }
  if (o.segment_tokens < 1 || o.coefficients < 1 || o.coefficients > o.segment_tokens ||
      (o.basis == BasisKind::kMean && o.coefficients != 1)) {
    return absl::InvalidArgumentError(absl::StrCat("coefficients is ", o.coefficients,
                                                   "; it must be 1 to segment_tokens (",
                                                   o.segment_tokens, "), and 1 for basis mean"));
  }
  if (tokens / o.segment_tokens < kMinSegments) {
    return absl::InvalidArgumentError(absl::StrCat(tokens, " calibration tokens are too few: give ",
                                                   kMinSegments * o.segment_tokens, " or more"));
  }
  return absl::OkStatus();
}

class Collector {
 public:
  Collector(const ModelConfig& config, const CalibrationOptions& options)
      : config_(config),
        basis_(options.basis, options.segment_tokens, options.coefficients),
        layers_(config.layers) {
    const size_t channels = static_cast<size_t>(config.kv_heads) * config.head_dim;
    for (LayerStatistics& layer : layers_) {
      layer.query_energy.assign(channels, 0.0);
      layer.k_lost.assign(channels, 0.0);
      layer.v_lost.assign(channels, 0.0);
    }
  }

  // One segment of one layer.
  void Add(int layer, const float* q, const float* k, const float* v) {
    LayerStatistics& to = layers_[layer];
    const int group = config_.query_heads / config_.kv_heads;
    for (int t = 0; t < basis_.segment_tokens(); ++t) {
      for (int h = 0; h < config_.query_heads; ++h) {
        for (int d = 0; d < config_.head_dim; ++d, ++q) {
          to.query_energy[h / group * config_.head_dim + d] += static_cast<double>(*q) * *q;
        }
      }
    }
    AddLostEnergy(basis_, k, &to.k_lost);
    AddLostEnergy(basis_, v, &to.v_lost);
  }

  const LayerStatistics& layer(int l) const { return layers_[l]; }

 private:
  const ModelConfig& config_;
  const Basis basis_;
  std::vector<LayerStatistics> layers_;
};

}  // namespace

absl::StatusOr<CodecProfile> Calibrate(std::shared_ptr<const LlamaModel> model,
                                       std::shared_ptr<ThreadPool> pool, ComputeBackend* backend,
                                       std::span<const int32_t> tokens,
                                       const CalibrationOptions& options) {
  if (absl::Status s = CheckOptions(options, tokens.size()); !s.ok()) return s;
  const ModelConfig& config = model->config();
  const int segment = options.segment_tokens;
  tokens = tokens.first(tokens.size() / segment * segment);
  auto cache = DenseKvCache::Create(config.Geometry(), backend, tokens.size());
  if (!cache.ok()) return cache.status();

  Collector collector(config, options);
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

  CodecProfile profile;
  profile.name = options.name;
  profile.geometry = config.Geometry();
  profile.basis = options.basis;
  profile.segment_tokens = segment;
  profile.heads.resize(static_cast<size_t>(config.layers) * config.kv_heads * 2);
  ChannelValues k_harm, v_harm;  // of all layers
  for (int l = 0; l < config.layers; ++l) {
    const LayerStatistics& of = collector.layer(l);
    AppendProduct(of.k_lost, of.query_energy, &k_harm);
    AppendProduct(of.v_lost, OutputSensitivity(config, model->layers()[l]), &v_harm);
  }
  const int channels = static_cast<int>(k_harm.size());
  const int pool_size = PoolSize(profile.geometry, options.pool);
  for (int first = 0; first < channels; first += pool_size) {
    const int last = first + pool_size;
    Assign(k_harm, first, last, {options.k_spectral, options.k_precise}, options, Part::kK,
           &profile);
    Assign(v_harm, first, last, {options.v_spectral, options.v_precise}, options, Part::kV,
           &profile);
  }
  if (s = profile.Validate(); !s.ok()) return s;
  return profile;
}

}  // namespace fourierkv
