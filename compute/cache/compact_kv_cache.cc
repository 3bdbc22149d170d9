#include "compute/cache/compact_kv_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/unique_id.h"
#include "compute/cache/compact_blob.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {
namespace {

constexpr int64_t kMaxRecentWindow = int64_t{1} << 20;
constexpr size_t kPayloadAlignment = 4;

std::vector<std::byte> CopyOf(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

}  // namespace

absl::Status CheckCompactLimits(int64_t recent_window, int64_t max_tokens,
                                float max_relative_error) {
  if (recent_window < 0 || recent_window > kMaxRecentWindow) {
    return absl::InvalidArgumentError(
        absl::StrCat("recent_window is ", recent_window, "; it must be 0 to ", kMaxRecentWindow));
  }
  if (max_tokens < 1 || max_tokens > kMaxCacheTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", max_tokens, "; it must be 1 to ", kMaxCacheTokens));
  }
  if (!(max_relative_error >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat("max_relative_error is ", max_relative_error,
                                                   "; it must be a number of at least 0"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CompactKvCache>> CompactKvCache::Create(
    std::shared_ptr<const ProfileLayout> layout, ComputeBackend* backend,
    const CompactCacheOptions& options) {
  const absl::Status status =
      CheckCompactLimits(options.recent_window, options.max_tokens, options.max_relative_error);
  if (!status.ok()) return status;
  return std::unique_ptr<CompactKvCache>(new CompactKvCache(std::move(layout), backend, options));
}

CompactKvCache::CompactKvCache(std::shared_ptr<const ProfileLayout> layout, ComputeBackend* backend,
                               const CompactCacheOptions& options)
    : FillableKvCache(layout->profile().geometry, options.dtype, options.max_tokens,
                      /*segment_tokens=*/layout->profile().segment_tokens, backend),
      layout_(std::move(layout)),
      segment_tokens_(layout_->profile().segment_tokens),
      recent_window_(options.recent_window),
      max_relative_error_(options.max_relative_error),
      segments_(geometry_.layers) {}

int64_t CompactKvCache::CompactSegments(int64_t length, int segment_tokens, int64_t recent_window) {
  // The smallest c >= 0 with length - (1 + c) S <= W + S.
  const int64_t excess = length - recent_window - 2 * segment_tokens;
  return excess <= 0 ? 0 : (excess + segment_tokens - 1) / segment_tokens;
}

int64_t CompactKvCache::compact_bytes() const {
  const int64_t headers = 2 * geometry_.layers * static_cast<int64_t>(kBlobHeaderBytes);
  return compact_segments() * (layout_->SegmentPayloadBytes() + headers);
}

void CompactKvCache::AddCompact(int layer, LayerKv* kv) const {
  kv->k_layout = &layout_->part(layer, Part::kK);
  kv->v_layout = &layout_->part(layer, Part::kV);
  kv->compact = segments_[layer].blocks;
}

absl::Status CompactKvCache::AfterAdvance() {
  while (settled_segments() < CompactSegments(length(), segment_tokens_, recent_window_)) {
    if (absl::Status s = SealOldest(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CompactKvCache::Compact() {
  if (absl::Status s = WaitUntilFilled(); !s.ok()) return s;
  return AfterAdvance();
}

absl::Status CompactKvCache::SealOldest() {
  SealedSegment sealed;
  sealed.index = settled_segments() + 1;
  sealed.dtype = dtype_;
  std::vector<EncodeJob> jobs;
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    const ExactBlock exact = exact_block(layer);
    const int64_t oldest = unsettled_index() * geometry_.head_dim;
    for (Part part : kParts) {
      const PartLayout& layout = layout_->part(layer, part);
      auto blob = std::make_shared<std::vector<std::byte>>(kBlobHeaderBytes + layout.payload_bytes);
      EncodeJob job;
      job.layout = &layout;
      job.dense = (part == Part::kK ? exact.k : exact.v) + oldest;
      job.head_stride = exact.head_stride;
      job.payload = blob->data() + kBlobHeaderBytes;
      jobs.push_back(job);
      sealed.parts.push_back({0, std::move(blob)});
    }
  }
  if (absl::Status s = backend_->Encode(dtype_, jobs); !s.ok()) return s;

  float error = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    sealed.parts[i].relative_error = jobs[i].relative_error;
    error = std::max(error, jobs[i].relative_error);
  }
  if (error > max_relative_error_) {
    SettleOldest(/*compact=*/false);
    return absl::OkStatus();
  }
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    segments_[layer].blocks.push_back(
        {jobs[layer * 2].payload, jobs[layer * 2 + 1].payload, NextUniqueId()});
    segments_[layer].owners.push_back(sealed.parts[layer * 2].blob);
    segments_[layer].owners.push_back(sealed.parts[layer * 2 + 1].blob);
  }
  SettleOldest(/*compact=*/true);
  sealed_.push_back(std::move(sealed));
  return absl::OkStatus();
}

std::vector<SealedSegment> CompactKvCache::TakeSealed() { return std::exchange(sealed_, {}); }

absl::Status CompactKvCache::BeginFill(const FillPlan& plan, absl::Time deadline) {
  if (absl::Status s = FillableKvCache::BeginFill(plan, deadline); !s.ok()) return s;
  for (LayerSegments& layer : segments_) {
    layer.blocks.assign(compact_segments(), CompactBlock{});
    layer.owners.assign(2 * compact_segments(), nullptr);
  }
  return absl::OkStatus();
}

absl::StatusOr<SharedBytes> CompactKvCache::VerifiedPayload(int layer, Part part, int64_t segment,
                                                            const SharedBytes& blob) const {
  absl::StatusOr<std::span<const std::byte>> payload =
      OpenCompactBlob(*layout_, dtype_, layer, part, segment, max_relative_error_, blob.span());
  if (!payload.ok()) return payload.status();
  if (reinterpret_cast<uintptr_t>(payload->data()) % kPayloadAlignment != 0) {
    return SharedBytes::Of(std::make_shared<const std::vector<std::byte>>(CopyOf(*payload)));
  }
  return SharedBytes{std::shared_ptr<const std::byte>(blob.data, payload->data()), payload->size()};
}

absl::Status CompactKvCache::InstallCompact(int layer, int64_t segment, SharedBytes k_blob,
                                            SharedBytes v_blob) {
  if (absl::Status s = CheckFilling(layer); !s.ok()) return s;
  const int64_t block = places().CompactIndexOf(segment);
  if (block < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment ", segment, " is not among the planned compact ones, 1 to ",
                     settled_segments(), " but for ", exact_inside().size(), " exact ones"));
  }
  absl::StatusOr<SharedBytes> k = VerifiedPayload(layer, Part::kK, segment, k_blob);
  if (!k.ok()) return k.status();
  absl::StatusOr<SharedBytes> v = VerifiedPayload(layer, Part::kV, segment, v_blob);
  if (!v.ok()) return v.status();
  LayerSegments& to = segments_[layer];
  to.blocks[block] = {k->data.get(), v->data.get(), NextUniqueId()};
  to.owners[2 * block] = std::move(k->data);
  to.owners[2 * block + 1] = std::move(v->data);
  return absl::OkStatus();
}

absl::Status CompactKvCache::CheckCompactInstalled(int layer) const {
  const std::vector<CompactBlock>& blocks = segments_[layer].blocks;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].k == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", layer, ": compact segment ",
                                                        places().SegmentOf(static_cast<int64_t>(i)),
                                                        " was not installed"));
    }
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
