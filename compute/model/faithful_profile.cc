#include "compute/model/faithful_profile.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/codec/sequence_layout.h"
#include "compute/model/llama_runner.h"
#include "compute/sequence/sequence_middle.h"

namespace fourierkv {
namespace {

// Every channel of every head spectral.
CodecProfile AllSpectral(const KvGeometry& geometry, const FaithfulOptions& options) {
  CodecProfile profile;
  profile.name = options.name;
  profile.geometry = geometry;
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = options.scope;
  Band band{options.scope.states(), options.coefficient_bits, {}};
  band.channels.resize(geometry.head_dim);
  std::iota(band.channels.begin(), band.channels.end(), uint16_t{0});
  profile.heads.assign(size_t{2} * geometry.layers * geometry.kv_heads, HeadProfile{{band}});
  return profile;
}

// Sum over the middle of (x - x^)^2 for each channel of a head. dense: [middle][head_dim].
std::vector<double> ChannelErrors(const SequenceMiddle& middle, int h, KvDtype dtype,
                                  const uint16_t* dense) {
  const int dim = middle.part().geometry.head_dim;
  const int64_t tile_tokens = middle.basis().tile_tokens(), n = middle.head(h).tokens;
  std::vector<double> errors(dim, 0.0);
  std::vector<float> rows(dim * tile_tokens);
  SequenceBasis::Scratch scratch;
  for (int64_t first = 0; first < n; first += tile_tokens) {
    middle.DecodeTile(h, first / tile_tokens, rows.data(), scratch);
    for (int64_t t = 0; t < std::min(tile_tokens, n - first); ++t) {
      for (int d = 0; d < dim; ++d) {
        const double difference =
            KvToFloat(dense[(first + t) * dim + d], dtype) - rows[d * tile_tokens + t];
        errors[d] += difference * difference;
      }
    }
  }
  return errors;
}

// Makes the `spectral` channels of least error spectral; errors: [kv_heads * head_dim].
void Assign(const std::vector<double>& errors, size_t spectral, int layer, Part part,
            CodecProfile* profile) {
  const KvGeometry& g = profile->geometry;
  std::vector<int> order(errors.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return errors[a] < errors[b]; });
  std::vector<bool> is_spectral(errors.size());
  for (size_t i = 0; i < spectral; ++i) is_spectral[order[i]] = true;
  for (int h = 0; h < g.kv_heads; ++h) {
    HeadProfile& head = profile->head(layer, h, part);
    Band kept{head.bands[0].coefficients, head.bands[0].bits, {}}, resident{0, 16, {}};
    for (int d = 0; d < g.head_dim; ++d) {
      (is_spectral[h * g.head_dim + d] ? kept : resident)
          .channels.push_back(static_cast<uint16_t>(d));
    }
    head.bands.clear();
    if (!kept.channels.empty()) head.bands.push_back(std::move(kept));
    if (!resident.channels.empty()) head.bands.push_back(std::move(resident));
  }
}

}  // namespace

double FaithfulShare(int layer, int layers, Part part) {
  if (layer < std::lround(layers / 8.0)) return part == Part::kK ? 0.9 : 0.95;
  if (layer >= layers - std::lround(layers / 4.0)) return part == Part::kK ? 0.5 : 0.7;
  return 0.8;
}

absl::StatusOr<CodecProfile> FaithfulProfile(std::shared_ptr<const LlamaModel> model,
                                             std::shared_ptr<ThreadPool> pool,
                                             ComputeBackend* backend,
                                             std::span<const int32_t> tokens,
                                             const FaithfulOptions& options) {
  const KvGeometry g = model->config().Geometry();
  CodecProfile profile = AllSpectral(g, options);
  if (absl::Status s = profile.Validate(); !s.ok()) return s;
  const SequenceScope& scope = options.scope;
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t middle = scope.MiddleTokens(count);
  if (middle == 0 || count > kMaxSequenceTokens) {
    return absl::InvalidArgumentError(absl::StrCat("a text of ", count, " tokens: give ",
                                                   scope.exact_tokens() + scope.states() + 1,
                                                   " to ", kMaxSequenceTokens));
  }
  auto cache = DenseKvCache::Create(g, backend, count);
  if (!cache.ok()) return cache.status();
  LlamaRunner runner(model, pool);
  ForwardOutput ignored;
  if (absl::Status s = Prefill(runner, tokens, **cache, &ignored); !s.ok()) return s;

  const SequenceLayout layout(profile);
  const auto basis = std::make_shared<const SequenceBasis>(middle, scope.frequencies);
  for (int l = 0; l < g.layers; ++l) {
    const ExactBlock block = (*cache)->exact_block(l);
    for (Part part : kParts) {
      SequenceMiddle encoded(&layout.part(l, part), basis);
      std::vector<double> errors(static_cast<size_t>(g.kv_heads) * g.head_dim);
      pool->ParallelFor(g.kv_heads, [&](int64_t i, int) {
        const int h = static_cast<int>(i);
        const uint16_t* dense = (part == Part::kK ? block.k : block.v) + i * block.head_stride +
                                int64_t{scope.sink_tokens} * g.head_dim;
        encoded.AppendHead(h, (*cache)->dtype(), dense, middle);
        encoded.SettleHead(h, (*cache)->dtype(), dense);
        const std::vector<double> of_head = ChannelErrors(encoded, h, (*cache)->dtype(), dense);
        std::copy(of_head.begin(), of_head.end(), errors.begin() + i * g.head_dim);
      });
      const double share = FaithfulShare(l, g.layers, part);
      const auto spectral =
          static_cast<size_t>(std::floor(share * static_cast<double>(errors.size()) + 1e-9));
      Assign(errors, spectral, l, part, &profile);
    }
  }
  profile.evidence["channels"] =
      "published shares of FourierAttention (arXiv 2506.11886), least squared error";
  profile.evidence["tokens"] = absl::StrCat(count);
  if (absl::Status s = profile.Validate(); !s.ok()) return s;
  return profile;
}

}  // namespace fourierkv
