#include "clients/search/one_head_form.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "compute/cache/compact_kv_cache.h"

namespace fourierkv {
namespace {

// One layer; the other heads are of no interest and cheap.
CodecProfile ProfileOf(const KvGeometry& model, const HeadPlace& place, const HeadProfile& head,
                       BasisKind basis, int segment_tokens) {
  CodecProfile profile;
  profile.name = "one head";
  profile.geometry = {1, model.kv_heads, model.head_dim};
  profile.basis = basis;
  profile.segment_tokens = segment_tokens;
  Band mean{1, 16, {}};
  for (int d = 0; d < model.head_dim; ++d) mean.channels.push_back(static_cast<uint16_t>(d));
  profile.heads.assign(static_cast<size_t>(model.kv_heads) * 2, HeadProfile{{mean}});
  profile.head(0, place.head, place.part) = head;
  return profile;
}

class OneHeadForm final : public CacheForm {
 public:
  OneHeadForm(const HeadPlace& place, const CodecProfile& profile, int64_t recent_window,
              ComputeBackend* backend)
      : CacheForm(
            absl::StrCat("layer ", place.layer, " head ", place.head, " ", PartName(place.part))),
        place_(place),
        layout_(profile),
        recent_window_(recent_window),
        backend_(backend) {}

  absl::StatusOr<FormedCache> Make(const DenseKvCache& dense, int64_t max_tokens) const override {
    auto cache = DenseKvCache::Create(dense.geometry(), backend_, max_tokens, dense.dtype());
    if (!cache.ok()) return cache.status();
    const KvGeometry& g = dense.geometry();
    const int64_t n = dense.length();
    const int64_t head_size = n * g.head_dim;
    FillPlan plan;
    plan.length = n;
    absl::Status s = (*cache)->BeginFill(plan, absl::InfiniteFuture());
    std::vector<uint16_t> k(g.kv_heads * head_size), v(k.size());
    for (int layer = 0; s.ok() && layer < g.layers; ++layer) {
      const ExactBlock exact = dense.exact_block(layer);
      for (int head = 0; head < g.kv_heads; ++head) {
        std::copy_n(exact.k + head * exact.head_stride, head_size, k.data() + head * head_size);
        std::copy_n(exact.v + head * exact.head_stride, head_size, v.data() + head * head_size);
      }
      if (layer == place_.layer) s = Compress(dense, place_.part == Part::kK ? &k : &v);
      if (s.ok()) s = (*cache)->InstallExact(layer, 0, n, k.data(), v.data());
      if (s.ok()) s = (*cache)->MarkLayerReady(layer);
    }
    if (!s.ok()) return s;
    const int64_t bytes = (*cache)->bytes();
    return FormedCache{*std::move(cache), {.whole = bytes, .whole_dense = bytes}};
  }

  int64_t ChunkTokens(int64_t /*length*/) const override { return 512; }

 private:
  // data: [kv_heads][length][head_dim]
  absl::Status Compress(const DenseKvCache& dense, std::vector<uint16_t>* data) const {
    const PartLayout& layout = layout_.part(0, place_.part);
    const KvGeometry& g = dense.geometry();
    const int64_t head_size = dense.length() * g.head_dim;
    const int64_t segment_size = int64_t{layout.segment_tokens} * g.head_dim;
    const int64_t segments =
        CompactKvCache::CompactSegments(dense.length(), layout.segment_tokens, recent_window_);
    const int64_t words = (layout.payload_bytes + 3) / 4;
    std::vector<uint32_t> payloads(segments * words);
    std::vector<uint16_t> decoded(segments * segment_size * g.kv_heads);
    std::vector<EncodeJob> encode(segments);
    std::vector<DecodeJob> decode(segments);
    for (int64_t i = 0; i < segments; ++i) {
      auto* payload = reinterpret_cast<std::byte*>(payloads.data() + i * words);
      encode[i] = {&layout, data->data() + (i + 1) * segment_size, head_size, payload};
      decode[i] = {&layout, payload, decoded.data() + i * segment_size * g.kv_heads, segment_size};
    }
    absl::Status s = backend_->Encode(dense.dtype(), encode);
    if (s.ok()) s = backend_->Decode(dense.dtype(), decode);
    if (!s.ok()) return s;
    for (int64_t i = 0; i < segments; ++i) {
      std::copy_n(decode[i].dense + place_.head * segment_size, segment_size,
                  data->data() + place_.head * head_size + (i + 1) * segment_size);
    }
    return absl::OkStatus();
  }

  const HeadPlace place_;
  const ProfileLayout layout_;
  const int64_t recent_window_;
  ComputeBackend* const backend_;
};

}  // namespace

std::unique_ptr<CacheForm> MakeOneHeadForm(const KvGeometry& model, const HeadPlace& place,
                                           const HeadProfile& head, BasisKind basis,
                                           int segment_tokens, int64_t recent_window,
                                           ComputeBackend* backend) {
  return std::make_unique<OneHeadForm>(place, ProfileOf(model, place, head, basis, segment_tokens),
                                       recent_window, backend);
}

}  // namespace fourierkv
