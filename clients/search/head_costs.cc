#include "clients/search/head_costs.h"

#include <cblas.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/eval/cache_form.h"
#include "clients/search/moments.h"
#include "compute/base/bfloat16.h"
#include "compute/base/symmetric_eigen.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/codec/rotation.h"
#include "compute/codec/segment_layout.h"
#include "compute/model/byte_tokenizer.h"

namespace fourierkv {
namespace {

constexpr int kQueryChunk = 256;

using Matrix = std::vector<double>;  // [D][D], symmetric

// u_j' A u_j for each column of U, or A's diagonal without a rotation.
std::vector<double> ChannelWeights(const Matrix& a, const std::vector<int16_t>& rotation, int dim) {
  std::vector<double> weights(dim);
  for (int j = 0; j < dim; ++j) {
    if (rotation.empty()) {
      weights[j] = a[static_cast<size_t>(j) * dim + j];
      continue;
    }
    for (int r = 0; r < dim; ++r) {
      double row = 0;
      for (int c = 0; c < dim; ++c) {
        row += a[static_cast<size_t>(r) * dim + c] *
               RotationEntry(rotation[static_cast<size_t>(c) * dim + j]);
      }
      weights[j] += RotationEntry(rotation[static_cast<size_t>(r) * dim + j]) * row;
    }
    weights[j] = std::max(weights[j], 0.0);
  }
  return weights;
}

// One segment of one head of a dense cache, as float: [S][D].
void LoadSegment(const ExactBlock& block, Part part, int head, int64_t segment, KvDtype dtype,
                 int tokens, int dim, float* out) {
  const uint16_t* from =
      (part == Part::kK ? block.k : block.v) + head * block.head_stride + segment * tokens * dim;
  for (int64_t i = 0; i < int64_t{tokens} * dim; ++i) {
    out[i] = KvToFloat(from[i], dtype);
  }
}

// A profile of one layer whose channels all have one representation.
CodecProfile Uniform(const KvGeometry& model, const Representation& r, const CostOptions& options) {
  CodecProfile profile;
  profile.name = RepresentationName(r);
  profile.geometry = {1, model.kv_heads, model.head_dim};
  profile.basis = options.basis;
  profile.segment_tokens = options.segment_tokens;
  Band band{r.coefficients, r.bits, {}};
  for (int d = 0; d < model.head_dim; ++d) band.channels.push_back(static_cast<uint16_t>(d));
  profile.heads.assign(static_cast<size_t>(model.kv_heads) * 2, HeadProfile{{band}});
  return profile;
}

class Collector {
 public:
  Collector(const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts,
            const CostOptions& options)
      : engine_(engine),
        contexts_(contexts),
        options_(options),
        geometry_(engine.model->config().Geometry()),
        heads_(static_cast<size_t>(geometry_.layers) * geometry_.kv_heads * 2) {}

  int64_t Segments(const EvalContext& context) const {
    return CompactKvCache::CompactSegments(context.dense().length(), options_.segment_tokens,
                                           options_.recent_window);
  }

  absl::StatusOr<std::vector<HeadCosts>> Run(std::span<const Representation> representations) {
    const size_t dim = geometry_.head_dim;
    metrics_.assign(heads_.size(), Matrix(dim * dim, 0.0));
    for (const auto& context : contexts_) {
      if (absl::Status s = AddQueries(*context); !s.ok()) return s;
    }
    AddOutputMetrics();
    if (absl::Status s = FindRotations(); !s.ok()) return s;

    std::vector<std::unique_ptr<ProfileLayout>> layouts;
    for (const Representation& r : representations) {
      layouts.push_back(std::make_unique<ProfileLayout>(Uniform(geometry_, r, options_)));
    }
    for (HeadCosts& head : heads_) head.errors.assign(layouts.size() * dim, 0.0);
    int64_t segments = 0;
    for (const auto& context : contexts_) {
      segments += Segments(*context);
      for (int layer = 0; layer < geometry_.layers; ++layer) {
        for (const Part part : kParts) {
          if (absl::Status s = AddErrors(*context, layer, part, layouts); !s.ok()) return s;
        }
      }
    }
    const double values = static_cast<double>(segments) * options_.segment_tokens;
    for (size_t i = 0; i < heads_.size(); ++i) {
      const std::vector<double> weights =
          ChannelWeights(metrics_[i], heads_[i].rotation, geometry_.head_dim);
      for (size_t e = 0; e < heads_[i].errors.size(); ++e) {
        heads_[i].errors[e] *= weights[e % dim] / values;
      }
      heads_[i].weights = ChannelWeights(metrics_[i], {}, geometry_.head_dim);
    }
    return std::move(heads_);
  }

 private:
  size_t Index(int layer, int head, Part part) const {
    return (static_cast<size_t>(layer) * geometry_.kv_heads + head) * 2 + static_cast<size_t>(part);
  }

  // E[q q'] over the tail's queries, summed over the query heads of the group.
  absl::Status AddQueries(const EvalContext& context) {
    const ModelConfig& config = engine_.model->config();
    const std::vector<int32_t> tail = EncodeBytes(context.text().tail);
    if (tail.empty()) return absl::InvalidArgumentError("a context has no tail: no queries");
    const auto form = MakeDenseForm(engine_.backend);
    auto made = form->Make(context.dense(), context.dense().length() + tail.size());
    if (!made.ok()) return made.status();
    const int group = config.query_heads / config.kv_heads;
    const double scale = 1.0 / (static_cast<double>(tail.size()) * contexts_.size());
    ForwardOptions forward{.logits = Logits::kNone};
    forward.on_qkv = [&](int layer, int64_t, int n, const float* q, const float*, const float*) {
      std::vector<float> rows(static_cast<size_t>(n) * group * config.head_dim);
      for (int head = 0; head < config.kv_heads; ++head) {
        const size_t row = static_cast<size_t>(group) * config.head_dim;
        for (int t = 0; t < n; ++t) {
          std::copy_n(q + (static_cast<size_t>(t) * config.kv_heads + head) * row, row,
                      rows.data() + t * row);
        }
        Matrix sum(static_cast<size_t>(config.head_dim) * config.head_dim, 0.0);
        AddSecondMoment(rows.data(), n * group, config.head_dim, &sum);
        Matrix& to = metrics_[Index(layer, head, Part::kK)];
        for (size_t i = 0; i < sum.size(); ++i) to[i] += scale * sum[i];
      }
      return absl::OkStatus();
    };
    LlamaRunner runner(engine_.model, engine_.pool);
    ForwardOutput ignored;
    return Prefill(runner, tail, *made->cache, &ignored, kQueryChunk, forward);
  }

  void AddOutputMetrics() {
    const ModelConfig& c = engine_.model->config();
    const int group = c.query_heads / c.kv_heads;
    const size_t row = static_cast<size_t>(c.query_heads) * c.head_dim;
    for (int layer = 0; layer < c.layers; ++layer) {
      const std::vector<float>& o = engine_.model->layers()[layer].o;
      std::vector<float> columns(static_cast<size_t>(c.hidden_size) * c.head_dim);
      for (int head = 0; head < c.query_heads; ++head) {
        for (int i = 0; i < c.hidden_size; ++i) {
          std::copy_n(o.data() + i * row + static_cast<size_t>(head) * c.head_dim, c.head_dim,
                      columns.data() + static_cast<size_t>(i) * c.head_dim);
        }
        AddSecondMoment(columns.data(), c.hidden_size, c.head_dim,
                        &metrics_[Index(layer, head / group, Part::kV)]);
      }
    }
  }

  absl::Status FindRotations() {
    const int dim = geometry_.head_dim, tokens = options_.segment_tokens;
    std::vector<float> x(static_cast<size_t>(tokens) * dim);
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      for (int head = 0; head < geometry_.kv_heads; ++head) {
        for (const Part part : kParts) {
          if (!(part == Part::kK ? options_.rotate_k : options_.rotate_v)) continue;
          Matrix moment(static_cast<size_t>(dim) * dim, 0.0);
          for (const auto& context : contexts_) {
            const ExactBlock block = context->dense().exact_block(layer);
            for (int64_t s = 1; s <= Segments(*context); ++s) {
              LoadSegment(block, part, head, s, context->dense().dtype(), tokens, dim, x.data());
              AddSecondMoment(x.data(), tokens, dim, &moment);
            }
          }
          auto eigen = EigenOfSymmetric(moment, dim);
          if (!eigen.ok()) return eigen.status();
          heads_[Index(layer, head, part)].rotation = QuantizeRotation(eigen->vectors);
        }
      }
    }
    return absl::OkStatus();
  }

  // Sums of squared errors, before weights.
  absl::Status AddErrors(const EvalContext& context, int layer, Part part,
                         std::span<const std::unique_ptr<ProfileLayout>> layouts) {
    const int dim = geometry_.head_dim, tokens = options_.segment_tokens;
    const int64_t segments = Segments(context);
    const int64_t size = int64_t{tokens} * dim;  // of one head of a segment
    const int64_t part_size = size * geometry_.kv_heads;
    std::vector<float> original(segments * part_size);
    std::vector<uint16_t> rounded(original.size()), decoded(original.size());
    std::vector<float> segment(size), u(static_cast<size_t>(dim) * dim);
    const ExactBlock block = context.dense().exact_block(layer);
    for (int head = 0; head < geometry_.kv_heads; ++head) {
      const std::vector<int16_t>& rotation = heads_[Index(layer, head, part)].rotation;
      for (size_t i = 0; i < rotation.size(); ++i) u[i] = RotationEntry(rotation[i]);
      for (int64_t s = 0; s < segments; ++s) {
        float* to = original.data() + s * part_size + head * size;
        LoadSegment(block, part, head, s + 1, context.dense().dtype(), tokens, dim,
                    rotation.empty() ? to : segment.data());
        if (rotation.empty()) continue;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, tokens, dim, dim, 1.0f,
                    segment.data(), dim, u.data(), dim, 0.0f, to, dim);
      }
    }
    for (size_t i = 0; i < original.size(); ++i) rounded[i] = FloatToBf16(original[i]);
    for (size_t r = 0; r < layouts.size(); ++r) {
      const PartLayout& layout = layouts[r]->part(0, part);
      std::vector<uint32_t> payloads(segments * ((layout.payload_bytes + 3) / 4));
      std::vector<EncodeJob> encode(segments);
      std::vector<DecodeJob> decode(segments);
      for (int64_t s = 0; s < segments; ++s) {
        auto* payload =
            reinterpret_cast<std::byte*>(payloads.data() + s * ((layout.payload_bytes + 3) / 4));
        encode[s] = {&layout, rounded.data() + s * part_size, size, payload};
        decode[s] = {&layout, payload, decoded.data() + s * part_size, size};
      }
      absl::Status status = engine_.backend->Encode(KvDtype::kBf16, encode);
      if (status.ok()) status = engine_.backend->Decode(KvDtype::kBf16, decode);
      if (!status.ok()) return status;
      std::vector<float> sums(dim);
      for (int head = 0; head < geometry_.kv_heads; ++head) {
        double* errors = heads_[Index(layer, head, part)].errors.data() + r * dim;
        for (int64_t s = 0; s < segments; ++s) {
          const int64_t first = s * part_size + head * size;
          std::fill(sums.begin(), sums.end(), 0.0f);
          for (int t = 0; t < tokens; ++t) {
            for (int d = 0; d < dim; ++d) {
              const int64_t i = first + int64_t{t} * dim + d;
              const float e = original[i] - Bf16ToFloat(decoded[i]);
              sums[d] += e * e;
            }
          }
          for (int d = 0; d < dim; ++d) errors[d] += sums[d];
        }
      }
    }
    return absl::OkStatus();
  }

  const EvalEngine& engine_;
  const std::span<const std::unique_ptr<EvalContext>> contexts_;
  const CostOptions options_;
  const KvGeometry geometry_;
  std::vector<HeadCosts> heads_;
  std::vector<Matrix> metrics_;  // A of each head
};

}  // namespace

absl::StatusOr<std::vector<HeadCosts>> CollectCosts(
    const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts,
    std::span<const Representation> representations, const CostOptions& options) {
  Collector collector(engine, contexts, options);
  int64_t segments = 0;
  for (const auto& context : contexts) segments += collector.Segments(*context);
  if (segments < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("the contexts have ", segments,
                     " compressed segments, 2 are needed: make them longer than ",
                     options.recent_window + 3 * options.segment_tokens, " tokens"));
  }
  return collector.Run(representations);
}

}  // namespace fourierkv
