#include "kv_service/core/part_collector.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/compute_backend.h"
#include "compute/codec/payload_check.h"
#include "kv_service/core/archived_blob.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/lossless_blob.h"
#include "kv_service/core/sequence_blob.h"

namespace fourierkv {
namespace {

// Enough work for one call of the encoder to keep all threads of a backend busy.
constexpr int64_t kEncodeBatchBytes = int64_t{8} << 20;

const uint16_t* RawValues(const BlobBuffer& buffer) {
  return reinterpret_cast<const uint16_t*>(buffer.bytes().data() + kBlobHeaderBytes);
}

}  // namespace

PartCollector::PartCollector(const PutPlan& plan, const std::vector<PlannedSegment>& segments,
                             MemoryBudget& budget, ComputeBackend& backend, StoreMetrics& metrics,
                             Patience patience)
    : context_(plan.context),
      payload_(plan.payload),
      exact_form_(plan.exact_form),
      compressed_form_(plan.compressed_form),
      max_relative_error_(plan.max_relative_error),
      sequence_capacity_(plan.sequence_capacity),
      segments_(segments),
      budget_(budget),
      backend_(backend),
      metrics_(metrics),
      patience_(std::move(patience)),
      layers_(context_->ns.geometry.layers) {}

int64_t PartCollector::PartBytes(size_t slot, int layer, Part part) const {
  if (payload_ == PutPayload::kDense) {
    return context_->ns.geometry.PartBytes(segments_[slot].tokens);
  }
  const SegmentForm form =
      payload_ == PutPayload::kCompact ? SegmentForm::kCompact : SegmentForm::kLossless;
  return static_cast<int64_t>(kBlobHeaderBytes +
                              ExpectedHeader(Identity(slot), form, layer, part, 0).payload_bytes);
}

absl::Status PartCollector::CheckPartBytes(int64_t id, int64_t part_bytes) const {
  const int64_t most = PartBytes(Slot(id), Layer(id), PartOf(id));
  if (payload_ != PutPayload::kLossless) {
    if (part_bytes == 0 || part_bytes == most) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("part_bytes is ", part_bytes, "; the part has ", most));
  }
  const auto least = static_cast<int64_t>(kBlobHeaderBytes + kLosslessOverheadBytes);
  if (part_bytes < least || part_bytes > most) {
    return absl::InvalidArgumentError(absl::StrCat("part_bytes is ", part_bytes,
                                                   "; with payload_form LOSSLESS it must be from ",
                                                   least, " to ", most));
  }
  const auto it = parts_.find(id);
  if (it != parts_.end() && it->second.assembly.size() != part_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "part_bytes is ", part_bytes, "; an earlier chunk said ", it->second.assembly.size()));
  }
  return absl::OkStatus();
}

absl::Status PartCollector::Add(size_t slot, int layer, Part part, int64_t part_bytes,
                                int64_t offset, std::span<const std::byte> bytes, bool* fatal) {
  *fatal = false;
  const int64_t id = Id(slot, layer, part);
  if (auto s = CheckPartBytes(id, part_bytes); !s.ok()) return Fault(id, s);
  auto it = parts_.find(id);
  if (it == parts_.end()) {
    const int64_t size = part_bytes != 0 ? part_bytes : PartBytes(slot, layer, part);
    if (offset > size) {  // not worth a reservation
      return Fault(id, absl::OutOfRangeError(absl::StrCat(
                           "offset ", offset, " is beyond the part's ", size, " bytes")));
    }
    auto started = Start(id, size);
    if (!started.ok()) return Fault(id, started.status());
    if (auto s = Write(started->assembly, offset, bytes); !s.ok()) return Fault(id, s);
    it = parts_.emplace(id, std::move(*started)).first;
  } else {
    if (auto s = Write(it->second.assembly, offset, bytes); !s.ok()) return Fault(id, s);
  }
  totals_.bytes_received += static_cast<int64_t>(bytes.size());
  StoreMetrics::Add(metrics_.bytes_in, bytes.size());
  if (!it->second.assembly.complete()) return absl::OkStatus();
  const absl::Status finished = Finish(id, it->second);
  *fatal = !finished.ok();
  return finished;
}

absl::Status PartCollector::Write(PartAssembly& assembly, int64_t offset,
                                  std::span<const std::byte> bytes) {
  const auto gaps = [&] { return std::max<int64_t>(assembly.ranges(), 1) - 1; };
  const int64_t before = gaps();
  const int64_t most = std::min(kMaxRangesPerPart, before + 1 + (kMaxGapsPerPut - gaps_));
  const absl::Status status = assembly.Write(offset, bytes, most);
  gaps_ += gaps() - before;
  return status;
}

absl::Status PartCollector::CheckComplete() const {
  for (size_t slot = 0; slot < segments_.size(); ++slot) {
    if (!segments_[slot].needed) continue;
    for (int layer = 0; layer < layers_; ++layer) {
      for (const Part part : kParts) {
        const int64_t id = Id(slot, layer, part);
        const auto it = parts_.find(id);
        if (it != parts_.end() && it->second.assembly.complete()) continue;
        const bool begun = it != parts_.end();
        return Fault(id, absl::FailedPreconditionError(absl::StrCat(
                             "incomplete: ", begun ? it->second.assembly.written() : 0, " of ",
                             begun ? it->second.assembly.size() : PartBytes(slot, layer, part),
                             " bytes received")));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status PartCollector::Flush() {
  if (waiting_.empty()) return absl::OkStatus();
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = compressed_form_ == SegmentForm::kArchived ? EncodeArchived()
                              : context_->sequence() != nullptr          ? EncodeSequences()
                                                                         : EncodeCompact();
  if (!status.ok()) return status;
  const auto took = std::chrono::steady_clock::now() - begin;
  totals_.encode_seconds += std::chrono::duration<double>(took).count();
  totals_.encoded_dense_bytes += waiting_bytes_;
  for (const int64_t id : waiting_) {
    if (auto s = patience_.Check(); !s.ok()) return s;
    PartState& state = parts_.at(id);
    totals_.max_relative_error = std::max(totals_.max_relative_error, state.compact.relative_error);
    if (auto s = KeepExact(id, state); !s.ok()) return Fault(id, s);
  }
  waiting_.clear();
  waiting_bytes_ = 0;
  return absl::OkStatus();
}

absl::Status PartCollector::EncodeArchived() {
  for (const int64_t id : waiting_) {
    if (auto s = patience_.Check(); !s.ok()) return s;
    PartState& state = parts_.at(id);
    const StoredSegment segment = Identity(Slot(id));
    auto made = MakeArchivedBlob(segment, Layer(id), PartOf(id),
                                 {RawValues(*state.raw), PartValues(segment)}, budget_, metrics_);
    if (!made.ok()) return Fault(id, made.status());
    state.compact = std::move(*made);
  }
  return absl::OkStatus();
}

absl::Status PartCollector::EncodeSequences() {
  if (basis_ == nullptr) basis_ = BasisOf(Identity(0));
  for (const int64_t id : waiting_) {
    if (auto s = patience_.Check(); !s.ok()) return s;
    PartState& state = parts_.at(id);
    const StoredSegment segment = Identity(Slot(id));
    auto made =
        MakeSequenceBlob(segment, Layer(id), PartOf(id), basis_,
                         {RawValues(*state.raw), PartValues(segment)}, backend_, budget_, metrics_);
    if (!made.ok()) return Fault(id, made.status());
    state.compact = std::move(*made);
  }
  return absl::OkStatus();
}

absl::Status PartCollector::EncodeCompact() {
  if (auto s = patience_.Check(); !s.ok()) return s;
  std::vector<EncodeJob> jobs;
  for (const int64_t id : waiting_) {
    PartState& state = parts_.at(id);
    const PartLayout& layout = context_->layout->part(Layer(id), PartOf(id));
    jobs.push_back({.layout = &layout,
                    .dense = RawValues(*state.raw),
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
  StoreMetrics::Add(metrics_.encoded_dense_bytes, waiting_bytes_);
  StoreMetrics::Add(metrics_.encode_nanoseconds,
                    std::chrono::duration_cast<std::chrono::nanoseconds>(took).count());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const int64_t id = waiting_[i];
    PartState& state = parts_.at(id);
    state.compact =
        Seal(id, SegmentForm::kCompact, jobs[i].relative_error, std::move(state.encoded));
  }
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
  FormPtr& encoded = segment.forms[compressed_form_];
  if (!compact.empty()) {
    encoded = std::make_shared<FormBlobs>(compressed_form_, std::move(compact));
  }
  const bool beyond_bound =
      encoded != nullptr && encoded->max_relative_error() > max_relative_error_;
  if (!exact.empty() && (segments_[slot].keep_exact || beyond_bound)) {
    segment.forms[exact_form_] = std::make_shared<FormBlobs>(exact_form_, std::move(exact));
    if (!segments_[slot].keep_exact) ++totals_.bounded_segments;
  }
  return segment;
}

void PartCollector::Clear() {
  parts_.clear();
  gaps_ = 0;
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
  segment.capacity = sequence_capacity_;
  segment.error_bound = max_relative_error_;
  return segment;
}

absl::StatusOr<PartCollector::PartState> PartCollector::Start(int64_t id,
                                                              int64_t part_bytes) const {
  // Raw values stand where they will be sealed as an exact blob: no copy.
  const int64_t begin = payload_ == PutPayload::kDense ? static_cast<int64_t>(kBlobHeaderBytes) : 0;
  auto buffer = BlobBuffer::Allocate(budget_, begin + part_bytes);
  if (!buffer.ok()) return buffer.status();
  PartState state;
  state.assembly = PartAssembly(std::move(*buffer), begin);
  if (payload_ != PutPayload::kCompact && compressed_form_ == SegmentForm::kCompact &&
      segments_[Slot(id)].keep_compact && context_->sequence() == nullptr) {
    const int64_t payload = context_->layout->part(Layer(id), PartOf(id)).payload_bytes;
    auto encoded = BlobBuffer::Allocate(budget_, static_cast<int64_t>(kBlobHeaderBytes) + payload);
    if (!encoded.ok()) return encoded.status();
    state.encoded = std::move(*encoded);
  }
  return state;
}

absl::Status PartCollector::Finish(int64_t id, PartState& state) {
  if (payload_ == PutPayload::kCompact) return FinishCompact(id, state);
  if (payload_ == PutPayload::kLossless) {
    if (auto s = Unpack(id, state); !s.ok()) return Fault(id, s);
  } else {
    state.raw = state.assembly.TakeBuffer();
  }
  if (!segments_[Slot(id)].keep_compact) {  // the encoder, which checks too, will not see them
    if (auto s = CheckValues(id, *state.raw); !s.ok()) return Fault(id, s);
    const absl::Status kept = KeepExact(id, state);
    return kept.ok() ? kept : Fault(id, kept);
  }
  waiting_.push_back(id);
  waiting_bytes_ += state.raw->size() - static_cast<int64_t>(kBlobHeaderBytes);
  return waiting_bytes_ >= kEncodeBatchBytes ? Flush() : absl::OkStatus();
}

absl::StatusOr<BlobHeader> PartCollector::OpenReceived(int64_t id, const PartState& state,
                                                       SegmentForm form) const {
  auto header = OpenBlob(state.assembly.buffer()->bytes());
  if (!header.ok()) return header;
  const BlobHeader expected =
      ExpectedHeader(Identity(Slot(id)), form, Layer(id), PartOf(id), header->relative_error);
  if (auto s = CheckHeader(*header, expected); !s.ok()) return s;
  return header;
}

absl::Status PartCollector::FinishCompact(int64_t id, PartState& state) {
  const auto header = OpenReceived(id, state, SegmentForm::kCompact);
  if (!header.ok()) return Fault(id, header.status());
  const BlobBuffer& blob = *state.assembly.buffer();
  const absl::Status payload =
      context_->sequence() != nullptr
          ? CheckSequenceBlob(Identity(Slot(id)), Layer(id), PartOf(id), blob)
          : CheckPayload(context_->layout->part(Layer(id), PartOf(id)), BlobPayload(blob.bytes()));
  if (!payload.ok()) return Fault(id, payload);
  totals_.max_relative_error = std::max(totals_.max_relative_error, header->relative_error);
  state.compact = FormPart{state.assembly.TakeBuffer(), header->relative_error};
  return absl::OkStatus();
}

absl::Status PartCollector::Unpack(int64_t id, PartState& state) const {
  const auto header = OpenReceived(id, state, SegmentForm::kLossless);
  if (!header.ok()) return header.status();
  const size_t count = PartValues(Identity(Slot(id)));
  auto raw =
      BlobBuffer::Allocate(budget_, static_cast<int64_t>(kBlobHeaderBytes + count * kKvDtypeBytes));
  if (!raw.ok()) return raw.status();
  auto* const values = reinterpret_cast<uint16_t*>((*raw)->bytes().data() + kBlobHeaderBytes);
  const std::shared_ptr<BlobBuffer> blob = state.assembly.TakeBuffer();
  if (auto s = ReadLosslessBlob(*blob, {values, count}, metrics_); !s.ok()) return s;
  state.raw = std::move(*raw);
  if (exact_form_ == SegmentForm::kLossless && HoldsExact(Slot(id))) state.exact = {blob, 0};
  return absl::OkStatus();
}

absl::Status PartCollector::CheckValues(int64_t id, const BlobBuffer& raw) const {
  const int tokens = segments_[Slot(id)].tokens;
  const auto bad =
      FirstBadValue({RawValues(raw), PartValues(Identity(Slot(id)))}, context_->ns.kv_dtype);
  if (!bad.has_value()) return absl::OkStatus();
  const int head_dim = context_->ns.geometry.head_dim;
  const int64_t row = *bad / head_dim;
  return absl::InvalidArgumentError(absl::StrCat("head ", row / tokens, " token ", row % tokens,
                                                 " channel ", *bad % head_dim,
                                                 " is NaN, infinite or beyond +-1e30"));
}

bool PartCollector::HoldsExact(size_t slot) const {
  return segments_[slot].keep_exact || max_relative_error_ != kNoErrorBound;
}

absl::Status PartCollector::KeepExact(int64_t id, PartState& state) const {
  const std::shared_ptr<BlobBuffer> raw = std::move(state.raw);
  if (!HoldsExact(Slot(id)) || state.exact.blob != nullptr) return absl::OkStatus();
  if (exact_form_ == SegmentForm::kExact) {
    state.exact = Seal(id, SegmentForm::kExact, 0, raw);
    return absl::OkStatus();
  }
  const StoredSegment segment = Identity(Slot(id));
  auto made = MakeLosslessBlob(segment, Layer(id), PartOf(id),
                               {RawValues(*raw), PartValues(segment)}, budget_, metrics_);
  if (!made.ok()) return made.status();
  state.exact = std::move(*made);
  return absl::OkStatus();
}

FormPart PartCollector::Seal(int64_t id, SegmentForm form, float relative_error,
                             std::shared_ptr<BlobBuffer> blob) const {
  SealBlob(ExpectedHeader(Identity(Slot(id)), form, Layer(id), PartOf(id), relative_error),
           blob->bytes());
  return FormPart{std::move(blob), relative_error};
}

}  // namespace fourierkv
