#include "compute/cache/fillable_kv_cache.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

// Tokens that can be added to a filled cache before its exact tokens have to be copied.
constexpr int64_t kSpareTokens = 1024;

}  // namespace

FillableKvCache::FillableKvCache(const KvGeometry& geometry, KvDtype dtype, int64_t max_tokens,
                                 int64_t segment_tokens, ComputeBackend* backend)
    : geometry_(geometry),
      dtype_(dtype),
      backend_(backend),
      max_tokens_(max_tokens),
      segment_tokens_(segment_tokens),
      places_(segment_tokens),
      layers_(),
      pending_(geometry.layers, 0),
      gate_(geometry.layers),
      installed_(geometry.layers) {
  layers_.reserve(geometry.layers);
  for (int l = 0; l < geometry.layers; ++l) {
    layers_.emplace_back(geometry.kv_heads, geometry.head_dim, dtype);
  }
}

int64_t FillableKvCache::bytes() const {
  return geometry_.DenseBytes(exact_tokens()) + compact_bytes();
}

CacheStats FillableKvCache::stats() const {
  return {.exact_tokens = exact_tokens(),
          .compact_segments = compact_segments(),
          .exact_inside = static_cast<int64_t>(exact_inside().size()),
          .exact_bytes = geometry_.DenseBytes(exact_tokens()),
          .compact_bytes = compact_bytes(),
          .dense_bytes = geometry_.DenseBytes(length_)};
}

absl::Status FillableKvCache::CheckLayer(int layer) const {
  if (layer >= 0 && layer < geometry_.layers) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layer ", layer, " does not exist; the cache has ", geometry_.layers));
}

absl::Status FillableKvCache::CheckFilling(int layer) const {
  if (absl::Status s = CheckLayer(layer); !s.ok()) return s;
  if (!gate_.is_open(layer)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "layer ", layer, " is not being filled; call BeginFill first, and MarkLayerReady last"));
}

absl::Status FillableKvCache::Reserve(int64_t tokens) {
  if (tokens > max_tokens_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot reserve ", tokens, " tokens: the cache holds ", max_tokens_, " at most"));
  }
  for (ExactLayer& layer : layers_) layer.Reserve(tokens);
  return absl::OkStatus();
}

absl::Status FillableKvCache::Append(int layer, int n, const float* k, const float* v) {
  if (absl::Status s = CheckLayer(layer); !s.ok()) return s;
  if (n < 1) return absl::InvalidArgumentError("Append needs at least one token");
  if (n > max_tokens_ - length_) {
    return absl::ResourceExhaustedError(absl::StrCat("the cache holds ", length_,
                                                     " tokens and cannot take ", n,
                                                     " more: its capacity is ", max_tokens_));
  }
  if (absl::Status s = gate_.Wait(layer); !s.ok()) return s;
  ExactLayer& store = layers_[layer];
  store.Resize(exact_tokens());  // drops what an abandoned chunk left behind
  store.Resize(exact_tokens() + n);
  store.WriteTokens(exact_tokens(), n, k, v);
  pending_[layer] = n;
  return absl::OkStatus();
}

absl::Status FillableKvCache::Attend(int layer, int n, int query_heads, const float* q,
                                     float* out) {
  if (absl::Status s = CheckLayer(layer); !s.ok()) return s;
  if (n < 1 || n > pending_[layer]) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", layer, ": Attend on ", n,
                                                      " tokens after Append of ", pending_[layer]));
  }
  const ExactBlock exact = layers_[layer].block();
  AttentionArgs args;
  args.kv.kv_heads = geometry_.kv_heads;
  args.kv.head_dim = geometry_.head_dim;
  args.kv.dtype = dtype_;
  args.kv.exact = {&exact, 1};
  AddCompact(layer, &args.kv);
  args.query_heads = query_heads;
  args.query_tokens = n;
  args.scale = 1.0f / std::sqrt(static_cast<float>(geometry_.head_dim));
  args.q = q;
  args.out = out;
  return backend_->Attend(args);
}

absl::Status FillableKvCache::Advance(int n) {
  for (int l = 0; l < geometry_.layers; ++l) {
    if (pending_[l] != n || n < 1) {
      return absl::FailedPreconditionError(
          absl::StrCat("Advance by ", n, " tokens, but layer ", l, " was given ", pending_[l]));
    }
  }
  length_ += n;
  std::fill(pending_.begin(), pending_.end(), 0);
  return AfterAdvance();
}

absl::Status FillableKvCache::WaitUntilFilled() const {
  for (int l = 0; l < geometry_.layers; ++l) {
    if (absl::Status s = gate_.Wait(l); !s.ok()) return s;
  }
  return absl::OkStatus();
}

void FillableKvCache::SettleOldest(bool compact) {
  if (compact) {
    for (ExactLayer& layer : layers_) layer.Erase(unsettled_index(), segment_tokens_);
  }
  places_.Settle(compact);
}

absl::Status FillableKvCache::BeginFill(const FillPlan& plan, absl::Time deadline) {
  if (length_ != 0) {
    return absl::FailedPreconditionError("only an empty cache can be filled");
  }
  if (absl::Status s = CheckFillPlan(plan, segment_tokens_, max_tokens_); !s.ok()) return s;
  length_ = plan.length;
  places_ = ExactPlaces(segment_tokens_, plan);
  std::fill(pending_.begin(), pending_.end(), 0);
  for (int l = 0; l < geometry_.layers; ++l) {
    layers_[l].Reserve(exact_tokens() + std::min(kSpareTokens, max_tokens_ - length_));
    layers_[l].Resize(exact_tokens());
    installed_[l].assign(exact_tokens(), false);
  }
  gate_.CloseAll(deadline);
  return absl::OkStatus();
}

absl::Status FillableKvCache::InstallExact(int layer, int64_t first_token, int64_t tokens,
                                           const uint16_t* k, const uint16_t* v) {
  if (absl::Status s = CheckFilling(layer); !s.ok()) return s;
  const int64_t first = places_.IndexOfRun(first_token, tokens, length_);
  if (first < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": ", tokens, " tokens from position ", first_token,
        " are not among those to be held exactly (", length_, " tokens, of which ",
        places_.compact_tokens(), " in segments 1 to ", settled_segments(), " are compact)"));
  }
  layers_[layer].WriteHeads(first, tokens, k, v);
  std::fill_n(installed_[layer].begin() + first, tokens, true);
  return absl::OkStatus();
}

absl::Status FillableKvCache::ReadExact(int layer, int64_t first_token, int64_t tokens, Part part,
                                        uint16_t* out) const {
  if (absl::Status s = CheckLayer(layer); !s.ok()) return s;
  const int64_t first = places_.IndexOfRun(first_token, tokens, length_);
  if (first < 0) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": ", tokens,
                                                   " tokens from position ", first_token,
                                                   " are not held exactly"));
  }
  const ExactBlock block = exact_block(layer);
  const uint16_t* const from = (part == Part::kK ? block.k : block.v) + first * geometry_.head_dim;
  for (int head = 0; head < geometry_.kv_heads; ++head) {
    out = std::copy_n(from + head * block.head_stride, tokens * geometry_.head_dim, out);
  }
  return absl::OkStatus();
}

absl::Status FillableKvCache::InstallCompact(int layer, int64_t segment, SharedBytes /*k_blob*/,
                                             SharedBytes /*v_blob*/) {
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": segment ", segment,
                                                 " is compact, and the cache is dense: ask for it ",
                                                 "exactly"));
}

absl::Status FillableKvCache::MarkLayerReady(int layer) {
  if (absl::Status s = CheckFilling(layer); !s.ok()) return s;
  const std::vector<bool>& installed = installed_[layer];
  const auto missing = std::find(installed.begin(), installed.end(), false);
  if (missing != installed.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer, ": the exact token at position ",
                     places_.PositionOf(missing - installed.begin()), " was not installed"));
  }
  if (absl::Status s = CheckCompactInstalled(layer); !s.ok()) return s;
  installed_[layer] = {};
  gate_.Open(layer);
  return absl::OkStatus();
}

}  // namespace fourierkv
