#include "compute/cache/cuda/device_fill.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/cache/compact_blob.h"

namespace fourierkv {

DeviceFill::DeviceFill(const DeviceKvCache* cache, cuda::IdleList<cuda::StagedUpload>* uploads,
                       std::function<absl::Status(const FillPlan& plan)> begin)
    : cache_(cache),
      uploads_(uploads),
      begin_(std::move(begin)),
      places_(cache->pool().segment_tokens()) {}

DeviceFill::~DeviceFill() {
  if (upload_ != nullptr) cudaStreamSynchronize(upload_->stream());
}

absl::Status DeviceFill::BeginFill(const FillPlan& plan, absl::Time deadline) {
  absl::StatusOr<cuda::IdleList<cuda::StagedUpload>::Borrowed> upload = uploads_->Borrow();
  if (!upload.ok()) return upload.status();
  if (absl::Status s = begin_(plan); !s.ok()) return s;
  upload_ = *std::move(upload);
  length_ = plan.length;
  places_ = ExactPlaces(cache_->pool().segment_tokens(), plan);
  Installed nothing;
  nothing.exact.resize(plan.length - places_.compact_tokens());
  nothing.compact.resize(places_.compact_segments());
  installed_.assign(geometry().layers, nothing);
  gate_.CloseAll(deadline);
  return absl::OkStatus();
}

absl::Status DeviceFill::CheckFilling(int layer) const {
  if (layer < 0 || layer >= geometry().layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " does not exist; the cache has ", geometry().layers));
  }
  if (!installed_.empty() && !installed_[layer].ready) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "layer ", layer, " is not being filled; call BeginFill first, and MarkLayerReady last"));
}

absl::Status DeviceFill::CopyRun(int layer, int64_t index, int64_t tokens, int64_t source_tokens,
                                 Part part, const uint16_t* from) {
  const KvGeometry& g = geometry();
  const int64_t segment = cache_->pool().segment_tokens();
  const size_t token_bytes = static_cast<size_t>(g.head_dim) * kKvDtypeBytes;
  uint16_t* const to = cache_->pool().block(layer, cache_->blocks()[index / segment], part) +
                       index % segment * g.head_dim;
  return upload_->Copy({reinterpret_cast<const std::byte*>(from), source_tokens * token_bytes,
                        tokens * token_bytes, static_cast<size_t>(g.kv_heads)},
                       reinterpret_cast<std::byte*>(to), segment * token_bytes);
}

absl::Status DeviceFill::InstallExact(int layer, int64_t first_token, int64_t tokens,
                                      const uint16_t* k, const uint16_t* v) {
  std::lock_guard lock(mutex_);
  if (absl::Status s = CheckFilling(layer); !s.ok()) return s;
  const int64_t first = places_.IndexOfRun(first_token, tokens, length_);
  if (first < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": ", tokens, " tokens from position ", first_token,
        " are not among those to be held exactly (", length_, " tokens, of which ",
        places_.compact_tokens(), " in segments 1 to ", places_.settled(), " are compact)"));
  }
  const int64_t segment = cache_->pool().segment_tokens();
  for (int64_t at = 0; at < tokens;) {
    const int64_t run = std::min(tokens - at, segment - (first + at) % segment);
    for (const Part part : kParts) {
      const uint16_t* from = (part == Part::kK ? k : v) + at * geometry().head_dim;
      if (absl::Status s = CopyRun(layer, first + at, run, tokens, part, from); !s.ok()) return s;
    }
    at += run;
  }
  std::fill_n(installed_[layer].exact.begin() + first, tokens, true);
  return absl::OkStatus();
}

absl::Status DeviceFill::InstallCompact(int layer, int64_t segment, SharedBytes k_blob,
                                        SharedBytes v_blob) {
  std::lock_guard lock(mutex_);
  if (absl::Status s = CheckFilling(layer); !s.ok()) return s;
  const int64_t index = places_.CompactIndexOf(segment);
  if (index < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment ", segment, " is not among the planned compact ones, 1 to ",
                     places_.settled(), " but for ", places_.exact_inside().size(), " exact ones"));
  }
  const DeviceKvPool& pool = cache_->pool();
  std::span<const std::byte> payloads[2];
  for (const Part part : kParts) {
    absl::StatusOr<std::span<const std::byte>> payload =
        OpenCompactBlob(pool.profile().layout(), dtype(), layer, part, segment,
                        cache_->max_relative_error(), (part == Part::kK ? k_blob : v_blob).span());
    if (!payload.ok()) return payload.status();
    payloads[static_cast<int>(part)] = *payload;
  }
  for (const Part part : kParts) {
    const std::span<const std::byte> from = payloads[static_cast<int>(part)];
    absl::Status s =
        upload_->Copy(from.data(), from.size(), pool.payload(layer, cache_->slots()[index], part));
    if (!s.ok()) return s;
  }
  installed_[layer].compact[index] = true;
  return absl::OkStatus();
}

absl::Status DeviceFill::MarkLayerReady(int layer) {
  std::lock_guard lock(mutex_);
  if (absl::Status s = CheckFilling(layer); !s.ok()) return s;
  Installed& installed = installed_[layer];
  const auto exact = std::find(installed.exact.begin(), installed.exact.end(), false);
  if (exact != installed.exact.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer, ": the exact token at position ",
                     places_.PositionOf(exact - installed.exact.begin()), " was not installed"));
  }
  const auto compact = std::find(installed.compact.begin(), installed.compact.end(), false);
  if (compact != installed.compact.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer, ": compact segment ",
                     places_.SegmentOf(compact - installed.compact.begin()), " was not installed"));
  }
  installed = {.exact = {}, .compact = {}, .ready = true};
  if (++layers_ready_ < geometry().layers) return absl::OkStatus();
  absl::Status s =
      CudaStatus(cudaStreamSynchronize(upload_->stream()), "copying fetched segments to the GPU");
  if (s.ok()) {
    upload_.reset();
    gate_.Open(0);
  }
  return s;
}

}  // namespace fourierkv
