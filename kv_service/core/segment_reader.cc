#include "kv_service/core/segment_reader.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/form_maker.h"
#include "kv_service/core/tiered_store.h"

namespace fourierkv {
namespace {

// Dense bytes that are encoded at a time: enough to keep a backend busy, and a bound on the exact
// values that are unpacked meanwhile.
constexpr int64_t kBatchBytes = int64_t{8} << 20;

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
    case MissingReason::kErrorBound:
      return "error bound";
    case MissingReason::kNotFetched:
      return "not fetched";
  }
  return "unknown";
}

int64_t OpenSegment::Bytes(int first_layer, int layers) const {
  if (missing != MissingReason::kNone) return 0;
  int64_t bytes = 0;
  for (int layer = first_layer; layer < first_layer + layers; ++layer) {
    for (const Part part : kParts) {
      bytes +=
          source->form() == form
              ? source->blob(layer, part)->size()
              : static_cast<int64_t>(kBlobHeaderBytes +
                                     ExpectedHeader(segment, form, layer, part, 0).payload_bytes);
    }
  }
  return bytes;
}

SegmentReader::SegmentReader(SegmentStore* store, ComputeBackend* backend,
                             std::shared_ptr<MemoryBudget> scratch, CorruptionLog log,
                             TieredStore* tiers)
    : store_(store),
      backend_(backend),
      scratch_(std::move(scratch)),
      log_(std::move(log)),
      tiers_(tiers) {}

absl::StatusOr<std::vector<OpenSegment>> SegmentReader::Open(std::span<const SegmentWant> wants,
                                                             const Patience& tier_patience,
                                                             const Patience& patience) {
  std::vector<BlockKey> keys;
  for (const SegmentWant& want : wants) {
    if (want.forms.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "segment ", want.key.ToHex(), ": accepted_forms is empty; name one at least"));
    }
    if (!(want.max_relative_error >= 0)) {
      return absl::InvalidArgumentError(absl::StrCat("max_relative_error is ",
                                                     want.max_relative_error,
                                                     "; it must be a number of at least 0"));
    }
    keys.push_back(want.key);
  }
  std::vector<FetchedSegment> stored(wants.size());
  if (tiers_ != nullptr) {
    stored = tiers_->Fetch(wants, tier_patience);
  } else {
    auto held = store_->Get(keys);
    for (size_t i = 0; i < wants.size(); ++i) stored[i].segment = std::move(held[i]);
  }
  std::vector<OpenSegment> result(wants.size());
  uint64_t hits = 0;
  for (size_t i = 0; i < wants.size(); ++i) {
    if (auto s = patience.Check(); !s.ok()) return s;
    OpenSegment& open = result[i];
    if (stored[i].segment.has_value()) {
      open.segment = *std::move(stored[i].segment);
      if (auto s = Choose(wants[i], open, patience); !s.ok()) return s;
    } else {
      open.missing = MissingReason::kNotStored;
    }
    if (open.missing != MissingReason::kNone && stored[i].late) {
      open.missing = MissingReason::kNotFetched;
      open.max_relative_error = 0;
    }
    if (open.missing == MissingReason::kNone) ++hits;
    open.segment.key = wants[i].key;
    open.segment.forms = {};  // `source` alone keeps memory; other forms may go
  }
  StoreMetrics::Add(store_->metrics().read_hits, hits);
  StoreMetrics::Add(store_->metrics().read_misses, wants.size() - hits);
  return result;
}

absl::Status SegmentReader::Choose(const SegmentWant& want, OpenSegment& open,
                                   const Patience& patience) {
  const StoredSegment& segment = open.segment;
  if (!segment.HoldsAnything()) {
    open.missing = MissingReason::kNotStored;
    return absl::OkStatus();
  }
  const bool bounded = want.max_relative_error != kNoErrorBound;
  float best_error = kNoErrorBound;
  for (const FormWay& way : WaysToServe(segment, want.forms)) {
    open.form = way.form;
    open.source = segment.forms[way.source];
    if (!KnownError(segment, way).has_value()) {
      auto made = Make(segment, way, patience);
      if (absl::IsOutOfRange(made.status())) {
        open.source.reset();
        continue;  // the values do not fit the profile's archive section
      }
      if (absl::IsDataLoss(made.status())) {
        open.missing = MissingReason::kCorrupt;
        return absl::OkStatus();
      }
      if (absl::IsResourceExhausted(made.status()) && !bounded) {
        open.error_unknown = true;  // layer by layer then
        return absl::OkStatus();
      }
      if (!made.ok()) return made.status();
      open.source = *std::move(made);
    }
    open.mean_relative_error = open.source->mean_relative_error();
    open.max_relative_error = open.source->max_relative_error();
    if (open.max_relative_error <= want.max_relative_error) {
      if (best_error != kNoErrorBound) {
        StoreMetrics::Add(store_->metrics().error_bound_fallbacks, 1);
      }
      return absl::OkStatus();
    }
    best_error = std::min(best_error, open.max_relative_error);
  }
  open.source.reset();
  if (best_error == kNoErrorBound) {
    open.missing = MissingReason::kFormNotHeld;
    return absl::OkStatus();
  }
  open.missing = MissingReason::kErrorBound;
  open.max_relative_error = best_error;
  StoreMetrics::Add(store_->metrics().error_bound_misses, 1);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LayerRead>> SegmentReader::ReadLayer(std::span<OpenSegment> open,
                                                                int layer,
                                                                const Patience& patience) {
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
    if (auto s = patience.Check(); !s.ok()) return s;
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
  if (auto s = MakeForms(jobs, *backend_, *scratch_, store_->metrics(), patience); !s.ok())
    return s;
  for (size_t j = 0; j < jobs.size(); ++j) {
    OpenSegment& from = open[job_owner[j]];
    LayerRead& read = result[job_owner[j]];
    if (!jobs[j].damage.ok() && from.source != nullptr) {
      Drop(from.segment, from.source, layer, jobs[j].part, jobs[j].damage).IgnoreError();
      from.missing = MissingReason::kCorrupt;
      from.source.reset();
    }
    if (from.missing != MissingReason::kNone) {
      read = {.missing = from.missing, .k = nullptr, .v = nullptr};
      continue;
    }
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
  if (const FormPtr& held = segment.forms[SegmentForm::kCompact]; held != nullptr) return held;
  static constexpr SegmentForm kWanted[] = {SegmentForm::kCompact};
  const std::vector<FormWay> ways = WaysToServe(segment, kWanted);
  if (ways.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("segment ", segment.key.ToHex(), " has no compact form: ",
                     segment.tail ? "it is a tail"
                                  : (segment.HoldsAnything() ? "its namespace has no codec profile"
                                                             : "its bytes were lost")));
  }
  return Make(segment, ways.front(), absl::InfiniteFuture());
}

absl::StatusOr<bool> SegmentReader::CheckForm(const StoredSegment& segment, const FormPtr& form,
                                              const Patience& patience) {
  for (int layer = 0; layer < form->layers(); ++layer) {
    for (const Part part : kParts) {
      if (auto s = patience.Check(); !s.ok()) return s;
      if (!Verify(segment, form, layer, part).ok()) return false;
    }
  }
  return true;
}

absl::StatusOr<MemoryCheck> SegmentReader::CheckMemory(const Patience& patience) {
  constexpr size_t kAtOnce = 1024;
  MemoryCheck check;
  std::vector<SegmentSummary> rows;
  bool more = true;
  for (size_t position = 0; more; rows.clear()) {
    more = store_->Walk(position, kAtOnce, rows);
    for (const SegmentSummary& row : rows) {
      const std::optional<StoredSegment> segment = store_->Peek(row.key);
      if (!segment.has_value()) continue;  // gone meanwhile
      ++check.segments;
      for (const SegmentForm form : kHeldForms) {
        const FormPtr& held = segment->forms[form];
        if (held == nullptr) continue;
        const absl::StatusOr<bool> whole = CheckForm(*segment, held, patience);
        if (!whole.ok()) return whole.status();
        ++check.forms;
        check.bytes += held->bytes();
        if (!*whole) ++check.damaged_forms;
      }
    }
  }
  return check;
}

absl::StatusOr<FormPtr> SegmentReader::Make(const StoredSegment& segment, const FormWay& way,
                                            const Patience& patience) {
  const FormPtr& source = segment.forms[way.source];
  StoreMetrics& metrics = store_->metrics();
  const KvGeometry& geometry = segment.context->ns.geometry;
  const int batch = static_cast<int>(
      std::max<int64_t>(1, kBatchBytes / (2 * geometry.PartBytes(segment.tokens))));
  std::vector<FormPart> parts;
  for (int first = 0; first < source->layers(); first += batch) {
    std::vector<MakeJob> jobs;
    for (int layer = first; layer < std::min(source->layers(), first + batch); ++layer) {
      for (const Part part : kParts) {
        auto verified = Verify(segment, source, layer, part);
        if (!verified.ok()) return verified.status();
        jobs.push_back({.segment = &segment,
                        .layer = layer,
                        .part = part,
                        .from = way.source,
                        .to = way.form,
                        .source = std::move(*verified)});
      }
    }
    if (auto s = MakeForms(jobs, *backend_, store_->budget(), metrics, patience); !s.ok()) return s;
    for (MakeJob& job : jobs) {
      if (!job.damage.ok()) return Drop(segment, source, job.layer, job.part, job.damage);
      parts.push_back(std::move(job.result));
    }
  }
  FormPtr made = std::make_shared<FormBlobs>(way.form, std::move(parts));
  StoreMetrics::Add(metrics.compacted_on_demand, 1);
  // The segment may be gone, or another reader may have been faster: this one's bytes are as good.
  store_->AddForm(segment.key, made).status().IgnoreError();
  return made;
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
  return Drop(segment, form, layer, part, status);
}

absl::Status SegmentReader::Drop(const StoredSegment& segment, const FormPtr& form, int layer,
                                 Part part, const absl::Status& why) {
  StoreMetrics::Add(store_->metrics().corrupt_blobs, 1);
  store_->DropDamaged(segment.key, form);
  if (log_) log_(segment.key, form->form(), layer, part, why);
  return absl::DataLossError(why.message());
}

}  // namespace fourierkv
