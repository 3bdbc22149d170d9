#include "clients/eval/cache_form.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/cache/sequence_kv_cache.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {
namespace {

// Installs every token of `dense`, exactly, into the empty cache `to`.
absl::Status CopyTokens(const DenseKvCache& dense, FillableKvCache& to) {
  const KvGeometry& g = dense.geometry();
  const int64_t n = dense.length();
  const int64_t head_size = n * g.head_dim;
  FillPlan plan;
  plan.length = n;
  absl::Status s = to.BeginFill(plan, absl::InfiniteFuture());
  std::vector<uint16_t> k(g.kv_heads * head_size), v(k.size());
  for (int layer = 0; s.ok() && layer < g.layers; ++layer) {
    const ExactBlock exact = dense.exact_block(layer);
    for (int head = 0; head < g.kv_heads; ++head) {
      std::copy_n(exact.k + head * exact.head_stride, head_size, k.data() + head * head_size);
      std::copy_n(exact.v + head * exact.head_stride, head_size, v.data() + head * head_size);
    }
    s = to.InstallExact(layer, 0, n, k.data(), v.data());
    if (s.ok()) s = to.MarkLayerReady(layer);
  }
  return s;
}

class DenseForm final : public CacheForm {
 public:
  explicit DenseForm(ComputeBackend* backend) : CacheForm("dense"), backend_(backend) {}

  absl::StatusOr<FormedCache> Make(const DenseKvCache& dense, int64_t max_tokens) const override {
    auto cache = DenseKvCache::Create(dense.geometry(), backend_, max_tokens, dense.dtype());
    if (!cache.ok()) return cache.status();
    if (absl::Status s = CopyTokens(dense, **cache); !s.ok()) return s;
    const int64_t bytes = (*cache)->bytes();
    return FormedCache{*std::move(cache), {.whole = bytes, .whole_dense = bytes}};
  }

 private:
  ComputeBackend* const backend_;
};

class CompactForm final : public CacheForm {
 public:
  CompactForm(std::string name, std::shared_ptr<const ProfileLayout> layout, int64_t recent_window,
              ComputeBackend* backend)
      : CacheForm(std::move(name)),
        layout_(std::move(layout)),
        recent_window_(recent_window),
        backend_(backend) {}

  absl::StatusOr<FormedCache> Make(const DenseKvCache& dense, int64_t max_tokens) const override {
    const CodecProfile& profile = layout_->profile();
    if (absl::Status s = profile.CheckFits(dense.geometry()); !s.ok()) return s;
    auto cache =
        CompactKvCache::Create(layout_, backend_, {recent_window_, max_tokens, dense.dtype()});
    if (!cache.ok()) return cache.status();
    if (absl::Status s = CopyTokens(dense, **cache); !s.ok()) return s;
    if (absl::Status s = (*cache)->Compact(); !s.ok()) return s;
    const CacheStats stats = (*cache)->stats();
    FormBytes bytes;
    bytes.compact_headers = stats.compact_segments * 2 * profile.geometry.layers *
                            static_cast<int64_t>(kBlobHeaderBytes);
    bytes.compact_payload = stats.compact_bytes - bytes.compact_headers;
    bytes.compact_dense = stats.dense_bytes - stats.exact_bytes;
    bytes.whole = stats.exact_bytes + stats.compact_bytes;
    bytes.whole_dense = stats.dense_bytes;
    return FormedCache{*std::move(cache), bytes};
  }

  int64_t ChunkTokens(int64_t length) const override {
    const int segment = layout_->profile().segment_tokens;
    const int64_t compact = CompactKvCache::CompactSegments(length, segment, recent_window_);
    // The first length at which another segment is sealed.
    const int64_t next = recent_window_ + (2 + compact) * segment + 1;
    return std::max<int64_t>(1, next - length);
  }

 private:
  const std::shared_ptr<const ProfileLayout> layout_;
  const int64_t recent_window_;
  ComputeBackend* const backend_;
};

class SequenceForm final : public CacheForm {
 public:
  SequenceForm(std::string name, std::shared_ptr<const SequenceLayout> layout,
               std::shared_ptr<ThreadPool> pool, ComputeBackend* backend)
      : CacheForm(std::move(name)),
        layout_(std::move(layout)),
        pool_(std::move(pool)),
        backend_(backend) {}

  absl::StatusOr<FormedCache> Make(const DenseKvCache& dense, int64_t max_tokens) const override {
    auto made =
        SequenceKvCache::FromDense(layout_, backend_, pool_, dense, max_tokens - dense.length());
    if (!made.ok()) return made.status();
    const SequenceKvCache& cache = **made;
    const KvGeometry& g = cache.geometry();
    FormBytes bytes;
    bytes.whole_dense = g.DenseBytes(cache.length());
    bytes.compact_dense = g.DenseBytes(cache.middle_tokens());
    const int64_t prefixes = 2 * g.layers * kSequencePrefixBytes;
    bytes.compact_headers = prefixes + 2 * g.layers * static_cast<int64_t>(kBlobHeaderBytes);
    bytes.compact_payload =
        cache.payload_bytes() - prefixes - (bytes.whole_dense - bytes.compact_dense);
    bytes.whole = cache.payload_bytes() - prefixes + bytes.compact_headers;
    if (cache.middle_tokens() == 0) bytes.compact_payload = bytes.compact_headers = 0;
    return FormedCache{*std::move(made), bytes};
  }

  int64_t ChunkTokens(int64_t /*length*/) const override { return 32; }

 private:
  const std::shared_ptr<const SequenceLayout> layout_;
  const std::shared_ptr<ThreadPool> pool_;
  ComputeBackend* const backend_;
};

}  // namespace

std::unique_ptr<CacheForm> MakeSequenceForm(std::string name,
                                            std::shared_ptr<const SequenceLayout> layout,
                                            std::shared_ptr<ThreadPool> pool,
                                            ComputeBackend* backend) {
  return std::make_unique<SequenceForm>(std::move(name), std::move(layout), std::move(pool),
                                        backend);
}

std::unique_ptr<CacheForm> MakeDenseForm(ComputeBackend* backend) {
  return std::make_unique<DenseForm>(backend);
}

std::unique_ptr<CacheForm> MakeCompactForm(std::string name,
                                           std::shared_ptr<const ProfileLayout> layout,
                                           int64_t recent_window, ComputeBackend* backend) {
  return std::make_unique<CompactForm>(std::move(name), std::move(layout), recent_window, backend);
}

}  // namespace fourierkv
