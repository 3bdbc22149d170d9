#include "compute/cache/sequence_kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/codec/sequence_payload_check.h"
#include "compute/sequence/sequence_attention.h"
#include "compute/sequence/sequence_codec.h"

namespace fourierkv {
namespace {

// Tokens that can be added to a filled cache before its exact tokens have to be copied.
constexpr int64_t kSpareTokens = 64;

// One softmax over two disjoint sets of tokens: a += b (docs/math.md, section 4).
void Merge(int64_t vectors, int dim, float* a, const float* a_lse, const float* b,
           const float* b_lse) {
  for (int64_t i = 0; i < vectors; ++i) {
    const float largest = std::max(a_lse[i], b_lse[i]);
    const float wa = std::exp(a_lse[i] - largest), wb = std::exp(b_lse[i] - largest);
    const float scale = 1 / (wa + wb);
    for (int d = 0; d < dim; ++d) {
      a[i * dim + d] = scale * (wa * a[i * dim + d] + wb * b[i * dim + d]);
    }
  }
}

// The exact tokens of a payload, aligned for reading.
std::vector<uint16_t> ExactTokens(std::span<const std::byte> payload, int64_t values) {
  std::vector<uint16_t> exact(values);
  std::memcpy(exact.data(), payload.data() + kSequencePrefixBytes, values * sizeof(uint16_t));
  return exact;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SequenceKvCache>> SequenceKvCache::Create(
    std::shared_ptr<const SequenceLayout> layout, ComputeBackend* backend,
    std::shared_ptr<ThreadPool> pool, const SequenceCacheOptions& options) {
  if (absl::Status s = CheckSequenceShape(1, options.capacity); !s.ok()) return s;
  return std::unique_ptr<SequenceKvCache>(
      new SequenceKvCache(std::move(layout), backend, std::move(pool), options));
}

SequenceKvCache::SequenceKvCache(std::shared_ptr<const SequenceLayout> layout,
                                 ComputeBackend* backend, std::shared_ptr<ThreadPool> pool,
                                 const SequenceCacheOptions& options)
    : layout_(std::move(layout)),
      geometry_(layout_->profile().geometry),
      options_(options),
      backend_(backend),
      pool_(std::move(pool)),
      middles_(static_cast<size_t>(geometry_.layers) * 2),
      pending_(geometry_.layers, 0),
      gate_(geometry_.layers) {
  for (int l = 0; l < geometry_.layers; ++l) {
    layers_.emplace_back(geometry_.kv_heads, geometry_.head_dim, options_.dtype);
  }
}

absl::StatusOr<std::unique_ptr<SequenceKvCache>> SequenceKvCache::FromDense(
    std::shared_ptr<const SequenceLayout> layout, ComputeBackend* backend,
    std::shared_ptr<ThreadPool> pool, const DenseKvCache& dense, int64_t max_new) {
  if (absl::Status s = layout->profile().CheckFits(dense.geometry()); !s.ok()) return s;
  const int64_t tokens = dense.length();
  if (tokens < 1 || max_new < 0 || max_new > kMaxSequenceTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", tokens, " tokens and max_new = ", max_new,
                     ": neither may be negative, nor the ", "prompt empty"));
  }
  auto made = Create(std::move(layout), backend, std::move(pool),
                     {.capacity = tokens + max_new, .prompt_tokens = 0, .dtype = dense.dtype()});
  if (!made.ok()) return made.status();
  SequenceKvCache& cache = **made;
  const KvGeometry& g = cache.geometry_;
  const SequenceScope& scope = cache.layout_->scope();
  const int64_t middle = scope.MiddleTokens(tokens), sink = middle > 0 ? scope.sink_tokens : 0;
  std::vector<ExactBlock> blocks;
  for (int l = 0; l < g.layers; ++l) {
    ExactBlock block = dense.exact_block(l);
    cache.layers_[l].Resize(tokens - middle);
    std::vector<uint16_t> rows[2];
    for (Part part : kParts) {
      for (int h = 0; h < g.kv_heads; ++h) {
        const uint16_t* from = (part == Part::kK ? block.k : block.v) + h * block.head_stride;
        std::vector<uint16_t>& to = rows[static_cast<int>(part)];
        to.insert(to.end(), from, from + sink * g.head_dim);
        to.insert(to.end(), from + (sink + middle) * g.head_dim, from + tokens * g.head_dim);
      }
    }
    cache.layers_[l].WriteHeads(0, tokens - middle, rows[0].data(), rows[1].data());
    block.k += sink * g.head_dim;
    block.v += sink * g.head_dim;
    blocks.push_back(block);
  }
  if (absl::Status s = cache.Encode(blocks, middle); !s.ok()) return s;
  cache.length_ = tokens;
  return made;
}

int64_t SequenceKvCache::bytes() const {
  int64_t bytes = geometry_.DenseBytes(exact_tokens());
  if (middle_tokens_ == 0) return bytes;
  for (int l = 0; l < geometry_.layers; ++l) {
    for (Part part : kParts) {
      bytes += SequenceMiddle::BytesFor(layout_->part(l, part), middle_tokens_);
    }
  }
  return bytes;
}

CacheStats SequenceKvCache::stats() const {
  CacheStats stats;
  stats.exact_tokens = exact_tokens();
  stats.exact_bytes = geometry_.DenseBytes(exact_tokens());
  stats.compact_bytes = bytes() - stats.exact_bytes;
  stats.dense_bytes = geometry_.DenseBytes(length_);
  return stats;
}

absl::Status SequenceKvCache::ForgetLast() {
  if (length_ == 0) return absl::FailedPreconditionError("an empty cache has no last token");
  --length_;  // recent tokens are exact, so it is; the next Append drops its K and V
  return absl::OkStatus();
}

absl::Status SequenceKvCache::CheckLayer(int layer) const {
  if (layer >= 0 && layer < geometry_.layers) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layer ", layer, " does not exist; the cache has ", geometry_.layers));
}

absl::Status SequenceKvCache::Append(int layer, int n, const float* k, const float* v) {
  if (absl::Status s = CheckLayer(layer); !s.ok()) return s;
  if (n < 1) return absl::InvalidArgumentError("Append needs at least one token");
  if (n > options_.capacity - length_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the cache holds ", length_, " tokens and cannot take ", n, " more: its Fourier basis was ",
        "made for ", options_.capacity, ", prompt and max_new together; raise max_new"));
  }
  if (absl::Status s = gate_.Wait(layer); !s.ok()) return s;
  ExactLayer& store = layers_[layer];
  store.Resize(exact_tokens());  // drops what an abandoned chunk left behind
  store.Resize(exact_tokens() + n);
  store.WriteTokens(exact_tokens(), n, k, v);
  pending_[layer] = n;
  return absl::OkStatus();
}

absl::Status SequenceKvCache::Attend(int layer, int n, int query_heads, const float* q,
                                     float* out) {
  if (absl::Status s = CheckLayer(layer); !s.ok()) return s;
  if (n < 1 || n > pending_[layer]) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", layer, ": Attend on ", n,
                                                      " tokens after Append of ", pending_[layer]));
  }
  const ExactBlock exact = layers_[layer].block();
  const int64_t vectors = int64_t{n} * query_heads;
  std::vector<float> exact_lse(std::max<int64_t>(vectors, 0));
  AttentionArgs args;
  args.kv.kv_heads = geometry_.kv_heads;
  args.kv.head_dim = geometry_.head_dim;
  args.kv.dtype = options_.dtype;
  args.kv.exact = {&exact, 1};
  args.query_heads = query_heads;
  args.query_tokens = n;
  args.scale = 1.0f / std::sqrt(static_cast<float>(geometry_.head_dim));
  args.q = q;
  args.out = out;
  args.lse = exact_lse.data();
  if (absl::Status s = backend_->Attend(args); !s.ok()) return s;
  if (middle_tokens_ == 0) return absl::OkStatus();
  std::vector<float> middle_out(vectors * geometry_.head_dim), middle_lse(vectors);
  AttendToMiddle(*middle(layer, Part::kK), *middle(layer, Part::kV), n, query_heads, args.scale, q,
                 middle_out.data(), middle_lse.data(), *pool_);
  Merge(vectors, geometry_.head_dim, out, exact_lse.data(), middle_out.data(), middle_lse.data());
  return absl::OkStatus();
}

absl::Status SequenceKvCache::Advance(int n) {
  for (int l = 0; l < geometry_.layers; ++l) {
    if (pending_[l] != n || n < 1) {
      return absl::FailedPreconditionError(
          absl::StrCat("Advance by ", n, " tokens, but layer ", l, " was given ", pending_[l]));
    }
  }
  length_ += n;
  std::fill(pending_.begin(), pending_.end(), 0);
  if (length_ < options_.prompt_tokens) return absl::OkStatus();
  return MoveToMiddle(layout_->scope().MiddleTokens(length_) - middle_tokens_);
}

absl::Status SequenceKvCache::MoveToMiddle(int64_t n) {
  if (n <= 0) return absl::OkStatus();
  const int64_t sink = layout_->scope().sink_tokens;
  std::vector<ExactBlock> blocks;
  for (const ExactLayer& layer : layers_) {
    ExactBlock block = layer.block();
    block.k += sink * geometry_.head_dim;
    block.v += sink * geometry_.head_dim;
    blocks.push_back(block);
  }
  if (absl::Status s = Encode(blocks, n); !s.ok()) return s;
  for (ExactLayer& layer : layers_) layer.Erase(sink, n);
  return absl::OkStatus();
}

absl::Status SequenceKvCache::Encode(std::span<const ExactBlock> from, int64_t n) {
  if (n <= 0) return absl::OkStatus();
  const int64_t heads = geometry_.kv_heads, tasks = heads * geometry_.layers * 2;
  const auto source = [&](int64_t task) {
    const ExactBlock& block = from[task / (2 * heads)];
    return (task / heads % 2 == 0 ? block.k : block.v) + task % heads * block.head_stride;
  };
  for (int64_t task = 0; task < tasks; ++task) {
    if (AllEncodable(options_.dtype, source(task), n * geometry_.head_dim)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(PartName(kParts[task / heads % 2]), " of layer ", task / (2 * heads),
                     ", head ", task % heads, " holds a value that is not finite or beyond 1e30"));
  }
  const bool first = middle_tokens_ == 0;
  if (first) {
    basis_ = std::make_shared<const SequenceBasis>(layout_->scope().Period(options_.capacity),
                                                   layout_->scope().frequencies);
    for (int l = 0; l < geometry_.layers; ++l) {
      for (Part part : kParts) {
        middles_[l * 2 + static_cast<int>(part)] =
            std::make_unique<SequenceMiddle>(&layout_->part(l, part), basis_);
      }
    }
  }
  pool_->ParallelFor(tasks, [&](int64_t task, int) {
    SequenceMiddle& to = *middles_[task / heads];
    const int head = static_cast<int>(task % heads);
    to.AppendHead(head, options_.dtype, source(task), n);
    if (first) to.SettleHead(head, options_.dtype, source(task));
  });
  middle_tokens_ += n;
  return absl::OkStatus();
}

absl::Status SequenceKvCache::BeginFill(int64_t tokens, absl::Time deadline) {
  if (length_ != 0) return absl::FailedPreconditionError("only an empty cache can be filled");
  if (tokens > options_.capacity) {
    return absl::ResourceExhaustedError(absl::StrCat("a fill of ", tokens, " tokens: the cache ",
                                                     "holds ", options_.capacity, " at most"));
  }
  if (absl::Status s = CheckSequenceShape(tokens, options_.capacity); !s.ok()) return s;
  length_ = tokens;
  filled_tokens_ = tokens;
  middle_tokens_ = layout_->scope().MiddleTokens(tokens);
  basis_ = MakeSequenceBasis(layout_->scope(), tokens, options_.capacity);
  std::fill(pending_.begin(), pending_.end(), 0);
  for (ExactLayer& layer : layers_) {
    layer.Reserve(exact_tokens() + kSpareTokens);
    layer.Resize(exact_tokens());
  }
  gate_.CloseAll(deadline);
  return absl::OkStatus();
}

absl::Status SequenceKvCache::InstallPayloads(int layer, std::span<const std::byte> k,
                                              std::span<const std::byte> v) {
  if (absl::Status s = CheckLayer(layer); !s.ok()) return s;
  if (gate_.is_open(layer)) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer, " is not being filled; call BeginFill first"));
  }
  for (Part part : kParts) {
    const SequencePart& of = layout_->part(layer, part);
    const std::span<const std::byte> payload = part == Part::kK ? k : v;
    absl::Status s =
        CheckSequencePayload(of, filled_tokens_, options_.capacity, options_.dtype, payload);
    if (!s.ok()) {
      return absl::Status(s.code(),
                          absl::StrCat(PartName(part), " of layer ", layer, ": ", s.message()));
    }
    if (middle_tokens_ == 0) continue;
    middles_[layer * 2 + static_cast<int>(part)] =
        ReadSequenceMiddle(of, filled_tokens_, basis_, payload);
  }
  const int64_t exact = filled_tokens_ - middle_tokens_;
  const int64_t values = exact * geometry_.kv_heads * geometry_.head_dim;
  layers_[layer].WriteHeads(0, exact, ExactTokens(k, values).data(), ExactTokens(v, values).data());
  gate_.Open(layer);
  return absl::OkStatus();
}

}  // namespace fourierkv
