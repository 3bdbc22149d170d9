#include "clients/eval/archived_form.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {
namespace {

class ArchivedForm final : public CacheForm {
 public:
  ArchivedForm(std::string name, std::shared_ptr<const ArchiveCodec> codec, int64_t recent_window,
               ComputeBackend* backend)
      : CacheForm(std::move(name)),
        codec_(std::move(codec)),
        recent_window_(recent_window),
        backend_(backend) {}

  absl::StatusOr<FormedCache> Make(const DenseKvCache& dense, int64_t max_tokens) const override {
    const KvGeometry& g = dense.geometry();
    if (g != codec_->geometry()) {
      return absl::InvalidArgumentError("the archive was made for a model of another geometry");
    }
    auto cache = DenseKvCache::Create(g, backend_, max_tokens, dense.dtype());
    if (!cache.ok()) return cache.status();
    const int64_t n = dense.length();
    const int64_t segments =
        CompactKvCache::CompactSegments(n, codec_->segment_tokens(), recent_window_);
    FillPlan plan;
    plan.length = n;
    FormBytes bytes;
    absl::Status s = (*cache)->BeginFill(plan, absl::InfiniteFuture());
    std::vector<uint16_t> parts[2];
    for (int layer = 0; s.ok() && layer < g.layers; ++layer) {
      const ExactBlock exact = dense.exact_block(layer);
      for (const Part part : kParts) {
        std::vector<uint16_t>& values = parts[static_cast<size_t>(part)];
        values.resize(g.kv_heads * n * g.head_dim);
        const uint16_t* from = part == Part::kK ? exact.k : exact.v;
        for (int head = 0; head < g.kv_heads; ++head) {
          std::copy_n(from + head * exact.head_stride, n * g.head_dim,
                      values.data() + head * n * g.head_dim);
        }
        for (int64_t i = 1; s.ok() && i <= segments; ++i) {
          s = Archive(layer, part, dense.dtype(), i, n, values, &bytes);
        }
      }
      if (s.ok()) s = (*cache)->InstallExact(layer, 0, n, parts[0].data(), parts[1].data());
      if (s.ok()) s = (*cache)->MarkLayerReady(layer);
    }
    if (!s.ok()) return s;
    bytes.compact_dense = g.DenseBytes(segments * codec_->segment_tokens());
    bytes.whole_dense = g.DenseBytes(n);
    bytes.whole =
        bytes.whole_dense - bytes.compact_dense + bytes.compact_payload + bytes.compact_headers;
    return FormedCache{*std::move(cache), bytes};
  }

  int64_t ChunkTokens(int64_t /*length*/) const override { return 512; }

 private:
  // Replaces segment i of values [kv_heads][n][head_dim] by what its archived form holds.
  absl::Status Archive(int layer, Part part, KvDtype dtype, int64_t i, int64_t n,
                       std::span<uint16_t> values, FormBytes* bytes) const {
    const KvGeometry& g = codec_->geometry();
    const int64_t tokens = codec_->segment_tokens();
    const int64_t size = tokens * g.head_dim;
    std::vector<uint16_t> segment(g.kv_heads * size);
    const auto place = [&](int head) {
      return values.begin() + (head * n + i * tokens) * g.head_dim;
    };
    for (int head = 0; head < g.kv_heads; ++head) {
      std::copy_n(place(head), size, segment.begin() + head * size);
    }
    auto archived = codec_->Encode(layer, part, dtype, i * tokens, segment);
    if (!archived.ok()) return archived.status();
    bytes->compact_payload += static_cast<int64_t>(archived->payload.size());
    bytes->compact_headers += kBlobHeaderBytes;
    absl::Status s = codec_->Decode(layer, part, dtype, i * tokens, archived->payload, segment);
    if (!s.ok()) return s;
    for (int head = 0; head < g.kv_heads; ++head) {
      std::copy_n(segment.begin() + head * size, size, place(head));
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<const ArchiveCodec> codec_;
  const int64_t recent_window_;
  ComputeBackend* const backend_;
};

}  // namespace

std::unique_ptr<CacheForm> MakeArchivedForm(std::string name,
                                            std::shared_ptr<const ArchiveCodec> codec,
                                            int64_t recent_window, ComputeBackend* backend) {
  return std::make_unique<ArchivedForm>(std::move(name), std::move(codec), recent_window, backend);
}

}  // namespace fourierkv
