#include "kv_service/core/part_collector.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/compute_backend.h"
#include "compute/codec/payload_check.h"
#include "kv_service/core/blob_identity.h"

namespace fourierkv {
namespace {

// Enough work for one call of the encoder to keep all threads of a backend busy.
constexpr int64_t kEncodeBatchBytes = int64_t{8} << 20;

const uint16_t* RawValues(const BlobBuffer& buffer) {
  return reinterpret_cast<const uint16_t*>(buffer.bytes().data() + kBlobHeaderBytes);
}

}  // namespace

PartCollector::PartCollector(std::shared_ptr<const NamespaceContext> context, PutPayload payload,
                             const std::vector<PlannedSegment>& segments, MemoryBudget& budget,
                             ComputeBackend& backend, StoreMetrics& metrics)
    : context_(std::move(context)),
      payload_(payload),
      segments_(segments),
      budget_(budget),
      backend_(backend),
      metrics_(metrics),
      layers_(context_->ns.geometry.layers) {}

int64_t PartCollector::PartBytes(size_t slot, int layer, Part part) const {
  return payload_ == PutPayload::kDense ? context_->ns.geometry.PartBytes(segments_[slot].tokens)
                                        : static_cast<int64_t>(kBlobHeaderBytes) +
                                              context_->layout->part(layer, part).payload_bytes;
}

absl::Status PartCollector::Add(size_t slot, int layer, Part part, int64_t offset,
                                std::span<const std::byte> bytes, bool* fatal) {
  *fatal = false;
  const int64_t id = Id(slot, layer, part);
  auto it = parts_.find(id);
  if (it == parts_.end()) {
    if (offset > PartBytes(slot, layer, part)) {  // not worth a reservation
      return Fault(id,
                   absl::OutOfRangeError(absl::StrCat("offset ", offset, " is beyond the part's ",
                                                      PartBytes(slot, layer, part), " bytes")));
    }
    auto started = Start(id);
    if (!started.ok()) return Fault(id, started.status());
    if (auto s = started->assembly.Write(offset, bytes); !s.ok()) return Fault(id, s);
    it = parts_.emplace(id, std::move(*started)).first;
  } else {
    if (auto s = it->second.assembly.Write(offset, bytes); !s.ok()) return Fault(id, s);
  }
  totals_.bytes_received += static_cast<int64_t>(bytes.size());
  StoreMetrics::Add(metrics_.bytes_in, bytes.size());
  if (!it->second.assembly.complete()) return absl::OkStatus();
  const absl::Status finished = Finish(id, it->second);
  *fatal = !finished.ok();
  return finished;
}

absl::Status PartCollector::CheckComplete() const {
  for (size_t slot = 0; slot < segments_.size(); ++slot) {
    if (!segments_[slot].needed) continue;
    for (int layer = 0; layer < layers_; ++layer) {
      for (const Part part : kParts) {
        const int64_t id = Id(slot, layer, part);
        const auto it = parts_.find(id);
        if (it != parts_.end() && it->second.assembly.complete()) continue;
        const int64_t received = it == parts_.end() ? 0 : it->second.assembly.written();
        return Fault(id, absl::FailedPreconditionError(
                             absl::StrCat("incomplete: ", received, " of ",
                                          PartBytes(slot, layer, part), " bytes received")));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status PartCollector::Flush() {
  if (waiting_.empty()) return absl::OkStatus();
  std::vector<EncodeJob> jobs;
  for (const int64_t id : waiting_) {
    PartState& state = parts_.at(id);
    const PartLayout& layout = context_->layout->part(Layer(id), PartOf(id));
    jobs.push_back({.layout = &layout,
                    .dense = RawValues(*state.assembly.buffer()),
                    .head_stride = int64_t{layout.segment_tokens} * layout.head_dim,
                    .payload = state.encoded->bytes().data() + kBlobHeaderBytes});
  }
  const KvDtype dtype = context_->ns.kv_dtype;
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = backend_.Encode(dtype, jobs);
  const auto took = std::chrono::steady_clock::now() - begin;
  if (!status.ok()) {
    // One by one, only to say which part it was.
    for (size_t i = 0; i < jobs.size(); ++i) {
      const absl::Status one = backend_.Encode(dtype, std::span(&jobs[i], 1));
      if (!one.ok()) return Fault(waiting_[i], one);
    }
    return status;
  }
  totals_.encode_seconds += std::chrono::duration<double>(took).count();
  totals_.encoded_dense_bytes += waiting_bytes_;
  StoreMetrics::Add(metrics_.encoded_dense_bytes, waiting_bytes_);
  StoreMetrics::Add(metrics_.encode_nanoseconds,
                    std::chrono::duration_cast<std::chrono::nanoseconds>(took).count());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const int64_t id = waiting_[i];
    PartState& state = parts_.at(id);
    state.compact =
        Seal(id, SegmentForm::kCompact, jobs[i].relative_error, std::move(state.encoded));
    totals_.max_relative_error = std::max(totals_.max_relative_error, jobs[i].relative_error);
    std::shared_ptr<BlobBuffer> raw = state.assembly.TakeBuffer();
    if (segments_[Slot(id)].keep_exact) {
      state.exact = Seal(id, SegmentForm::kExact, 0, std::move(raw));
    }
  }
  waiting_.clear();
  waiting_bytes_ = 0;
  return absl::OkStatus();
}

StoredSegment PartCollector::Take(size_t slot) {
  StoredSegment segment = Identity(slot);
  if (!segments_[slot].needed) return segment;
  std::vector<FormPart> exact;
  std::vector<FormPart> compact;
  for (int layer = 0; layer < layers_; ++layer) {
    for (const Part part : kParts) {
      PartState& state = parts_.at(Id(slot, layer, part));
      if (state.exact.blob != nullptr) exact.push_back(std::move(state.exact));
      if (state.compact.blob != nullptr) compact.push_back(std::move(state.compact));
    }
  }
  if (!exact.empty()) {
    segment.exact = std::make_shared<FormBlobs>(SegmentForm::kExact, std::move(exact));
  }
  if (!compact.empty()) {
    segment.compact = std::make_shared<FormBlobs>(SegmentForm::kCompact, std::move(compact));
  }
  return segment;
}

void PartCollector::Clear() {
  parts_.clear();
  waiting_.clear();
  waiting_bytes_ = 0;
}

int64_t PartCollector::Id(size_t slot, int layer, Part part) const {
  return (static_cast<int64_t>(slot) * layers_ + layer) * 2 + static_cast<int>(part);
}

absl::Status PartCollector::Fault(int64_t id, const absl::Status& status) const {
  return absl::Status(status.code(),
                      absl::StrCat("segment ", segments_[Slot(id)].index, " layer ", Layer(id), " ",
                                   PartName(PartOf(id)), ": ", status.message()));
}

StoredSegment PartCollector::Identity(size_t slot) const {
  const PlannedSegment& planned = segments_[slot];
  StoredSegment segment;
  segment.key = planned.key;
  segment.parent = planned.parent;
  segment.context = context_;
  segment.index = planned.index;
  segment.tokens = planned.tokens;
  segment.tail = planned.tail;
  return segment;
}

absl::StatusOr<PartCollector::PartState> PartCollector::Start(int64_t id) const {
  // Raw values stand where they will be sealed as an exact blob: no copy.
  const int64_t begin = payload_ == PutPayload::kDense ? static_cast<int64_t>(kBlobHeaderBytes) : 0;
  auto buffer = BlobBuffer::Allocate(budget_, begin + PartBytes(Slot(id), Layer(id), PartOf(id)));
  if (!buffer.ok()) return buffer.status();
  PartState state;
  state.assembly = PartAssembly(std::move(*buffer), begin);
  if (payload_ == PutPayload::kDense && segments_[Slot(id)].keep_compact) {
    const int64_t payload = context_->layout->part(Layer(id), PartOf(id)).payload_bytes;
    auto encoded = BlobBuffer::Allocate(budget_, static_cast<int64_t>(kBlobHeaderBytes) + payload);
    if (!encoded.ok()) return encoded.status();
    state.encoded = std::move(*encoded);
  }
  return state;
}

absl::Status PartCollector::Finish(int64_t id, PartState& state) {
  if (payload_ == PutPayload::kCompact) return FinishCompact(id, state);
  if (state.encoded == nullptr) return FinishExact(id, state);
  waiting_.push_back(id);
  waiting_bytes_ += PartBytes(Slot(id), Layer(id), PartOf(id));
  return waiting_bytes_ >= kEncodeBatchBytes ? Flush() : absl::OkStatus();
}

absl::Status PartCollector::FinishExact(int64_t id, PartState& state) const {
  const KvGeometry& geometry = context_->ns.geometry;
  const int tokens = segments_[Slot(id)].tokens;
  const size_t count = static_cast<size_t>(geometry.PartBytes(tokens)) / kKvDtypeBytes;
  const auto bad =
      FirstBadValue({RawValues(*state.assembly.buffer()), count}, context_->ns.kv_dtype);
  if (bad.has_value()) {
    const int64_t row = *bad / geometry.head_dim;
    return Fault(id, absl::InvalidArgumentError(absl::StrCat(
                         "head ", row / tokens, " token ", row % tokens, " channel ",
                         *bad % geometry.head_dim, " is NaN, infinite or beyond +-1e30")));
  }
  state.exact = Seal(id, SegmentForm::kExact, 0, state.assembly.TakeBuffer());
  return absl::OkStatus();
}

absl::Status PartCollector::FinishCompact(int64_t id, PartState& state) {
  const std::span<const std::byte> blob = state.assembly.buffer()->bytes();
  const auto header = OpenBlob(blob);
  if (!header.ok()) return Fault(id, header.status());
  const int layer = Layer(id);
  const Part part = PartOf(id);
  const StoredSegment segment = Identity(Slot(id));
  const BlobHeader expected =
      ExpectedHeader(segment, SegmentForm::kCompact, layer, part, header->relative_error);
  if (auto s = CheckHeader(*header, expected); !s.ok()) return Fault(id, s);
  if (auto s = CheckPayload(context_->layout->part(layer, part), BlobPayload(blob)); !s.ok()) {
    return Fault(id, s);
  }
  totals_.max_relative_error = std::max(totals_.max_relative_error, header->relative_error);
  state.compact = FormPart{state.assembly.TakeBuffer(), header->relative_error};
  return absl::OkStatus();
}

FormPart PartCollector::Seal(int64_t id, SegmentForm form, float relative_error,
                             std::shared_ptr<BlobBuffer> blob) const {
  SealBlob(ExpectedHeader(Identity(Slot(id)), form, Layer(id), PartOf(id), relative_error),
           blob->bytes());
  return FormPart{std::move(blob), relative_error};
}

}  // namespace fourierkv
