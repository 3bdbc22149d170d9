#include "kv_service/core/segment_reader.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/form_maker.h"

namespace fourierkv {
namespace {

bool CanCompact(const StoredSegment& segment) {
  return segment.exact != nullptr && !segment.tail && segment.context->layout != nullptr;
}

}  // namespace

const char* MissingReasonName(MissingReason reason) {
  switch (reason) {
    case MissingReason::kNone:
      return "none";
    case MissingReason::kNotStored:
      return "not stored";
    case MissingReason::kFormNotHeld:
      return "form not held";
    case MissingReason::kCorrupt:
      return "corrupt";
  }
  return "unknown";
}

int64_t OpenSegment::Bytes(int first_layer, int layers) const {
  if (missing != MissingReason::kNone) return 0;
  int64_t bytes = 0;
  for (int layer = first_layer; layer < first_layer + layers; ++layer) {
    for (const Part part : kParts) {
      bytes += static_cast<int64_t>(kBlobHeaderBytes +
                                    ExpectedHeader(segment, form, layer, part, 0).payload_bytes);
    }
  }
  return bytes;
}

SegmentReader::SegmentReader(SegmentStore* store, ComputeBackend* backend,
                             std::shared_ptr<MemoryBudget> scratch, CorruptionLog log)
    : store_(store), backend_(backend), scratch_(std::move(scratch)), log_(std::move(log)) {}

absl::StatusOr<std::vector<OpenSegment>> SegmentReader::Open(std::span<const SegmentWant> wants) {
  std::vector<BlockKey> keys;
  for (const SegmentWant& want : wants) {
    if (want.forms.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "segment ", want.key.ToHex(), ": accepted_forms is empty; name one at least"));
    }
    keys.push_back(want.key);
  }
  auto stored = store_->Get(keys);
  std::vector<OpenSegment> result(wants.size());
  uint64_t hits = 0;
  for (size_t i = 0; i < wants.size(); ++i) {
    OpenSegment& open = result[i];
    if (stored[i].has_value()) {
      open.segment = std::move(*stored[i]);
      if (auto s = Choose(wants[i].forms, open); !s.ok()) return s;
    } else {
      open.missing = MissingReason::kNotStored;
    }
    if (open.missing == MissingReason::kNone) {
      ++hits;
    } else {
      open.segment = StoredSegment();
      open.segment.key = wants[i].key;
    }
    // `source` alone keeps memory; the other form may go.
    open.segment.exact.reset();
    open.segment.compact.reset();
  }
  StoreMetrics::Add(store_->metrics().read_hits, hits);
  StoreMetrics::Add(store_->metrics().read_misses, wants.size() - hits);
  return result;
}

absl::Status SegmentReader::Choose(std::span<const SegmentForm> forms, OpenSegment& open) {
  const StoredSegment& segment = open.segment;
  if (segment.exact == nullptr && segment.compact == nullptr) {
    open.missing = MissingReason::kNotStored;
    return absl::OkStatus();
  }
  for (const SegmentForm form : forms) {
    if (segment.form(form) == nullptr) continue;
    open.form = form;
    open.source = segment.form(form);
    return absl::OkStatus();
  }
  for (const SegmentForm form : forms) {
    open.form = form;
    if (form == SegmentForm::kDense) {
      open.source = segment.compact != nullptr ? segment.compact : segment.exact;
      return absl::OkStatus();
    }
    if (form == SegmentForm::kCompact && CanCompact(segment)) {
      auto compact = Compact(segment);
      if (compact.ok()) {
        open.source = std::move(*compact);
      } else if (absl::IsResourceExhausted(compact.status())) {
        open.source = segment.exact;  // layer by layer then
      } else if (absl::IsDataLoss(compact.status())) {
        open.missing = MissingReason::kCorrupt;
      } else {
        return compact.status();
      }
      return absl::OkStatus();
    }
  }
  open.missing = MissingReason::kFormNotHeld;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LayerRead>> SegmentReader::ReadLayer(std::span<OpenSegment> open,
                                                                int layer) {
  for (const OpenSegment& segment : open) {
    if (segment.source != nullptr && (layer < 0 || layer >= segment.source->layers())) {
      return absl::OutOfRangeError(absl::StrCat("layer is ", layer, "; segment ",
                                                segment.segment.key.ToHex(), " has ",
                                                segment.source->layers(), " layers"));
    }
  }
  std::vector<LayerRead> result(open.size());
  std::vector<MakeJob> jobs;
  std::vector<size_t> job_owner;
  for (size_t i = 0; i < open.size(); ++i) {
    OpenSegment& from = open[i];
    std::array<FormPart, 2> parts;
    for (const Part part : kParts) {
      if (from.missing != MissingReason::kNone) break;
      auto verified = Verify(from.segment, from.source, layer, part);
      if (verified.ok()) {
        parts[static_cast<size_t>(part)] = std::move(*verified);
      } else {
        from.missing = MissingReason::kCorrupt;
        from.source.reset();
      }
    }
    result[i].missing = from.missing;
    if (from.missing != MissingReason::kNone) continue;
    if (from.form == from.source->form()) {
      result[i].k = std::move(parts[0].blob);
      result[i].v = std::move(parts[1].blob);
      continue;
    }
    for (const Part part : kParts) {
      jobs.push_back({.segment = &from.segment,
                      .layer = layer,
                      .part = part,
                      .from = from.source->form(),
                      .to = from.form,
                      .source = std::move(parts[static_cast<size_t>(part)])});
      job_owner.push_back(i);
    }
  }
  if (auto s = MakeForms(jobs, *backend_, *scratch_, store_->metrics()); !s.ok()) return s;
  for (size_t j = 0; j < jobs.size(); ++j) {
    LayerRead& read = result[job_owner[j]];
    (jobs[j].part == Part::kK ? read.k : read.v) = std::move(jobs[j].result.blob);
  }
  uint64_t bytes = 0;
  for (const LayerRead& read : result) {
    if (read.missing == MissingReason::kNone) bytes += read.k->size() + read.v->size();
  }
  StoreMetrics::Add(store_->metrics().bytes_out, bytes);
  return result;
}

absl::StatusOr<FormPtr> SegmentReader::EnsureCompact(const BlockKey& key) {
  const auto stored = store_->Get(std::span(&key, 1));
  if (!stored[0].has_value()) {
    return absl::NotFoundError(absl::StrCat("segment ", key.ToHex(), " is not stored"));
  }
  const StoredSegment& segment = *stored[0];
  if (segment.compact != nullptr) return segment.compact;
  if (!CanCompact(segment)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "segment ", key.ToHex(), " has no compact form: ",
        segment.tail ? "it is a tail"
                     : (segment.exact == nullptr ? "its bytes were lost"
                                                 : "its namespace has no codec profile")));
  }
  return Compact(segment);
}

absl::StatusOr<FormPtr> SegmentReader::Compact(const StoredSegment& segment) {
  std::vector<MakeJob> jobs;
  for (int layer = 0; layer < segment.exact->layers(); ++layer) {
    for (const Part part : kParts) {
      auto source = Verify(segment, segment.exact, layer, part);
      if (!source.ok()) return source.status();
      jobs.push_back(
          {.segment = &segment, .layer = layer, .part = part, .source = std::move(*source)});
    }
  }
  StoreMetrics& metrics = store_->metrics();
  if (auto s = MakeForms(jobs, *backend_, store_->budget(), metrics); !s.ok()) return s;
  std::vector<FormPart> parts;
  for (MakeJob& job : jobs) parts.push_back(std::move(job.result));
  FormPtr compact = std::make_shared<FormBlobs>(SegmentForm::kCompact, std::move(parts));
  StoreMetrics::Add(metrics.compacted_on_demand, 1);
  // The segment may be gone, or another reader may have been faster: this one's bytes are as good.
  store_->AddForm(segment.key, compact).status().IgnoreError();
  return compact;
}

absl::StatusOr<FormPart> SegmentReader::Verify(const StoredSegment& segment, const FormPtr& form,
                                               int layer, Part part) {
  const BlobPtr& blob = form->blob(layer, part);
  const auto header = OpenBlob(blob->bytes());
  absl::Status status = header.status();
  if (header.ok()) {
    status = CheckHeader(*header, ExpectedHeader(segment, form->form(), layer, part, 0));
  }
  if (status.ok()) return FormPart{blob, header->relative_error};
  StoreMetrics::Add(store_->metrics().corrupt_blobs, 1);
  store_->DropDamaged(segment.key, form);
  if (log_) log_(segment.key, form->form(), layer, part, status);
  return absl::DataLossError(status.message());
}

}  // namespace fourierkv
