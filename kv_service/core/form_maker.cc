#include "kv_service/core/form_maker.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "compute/backend/compute_backend.h"
#include "kv_service/core/archived_blob.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/lossless_blob.h"
#include "kv_service/core/sequence_blob.h"

namespace fourierkv {
namespace {

// Dense bytes of one call of the backend: enough to keep its threads busy, and a few milliseconds.
constexpr uint64_t kBatchBytes = uint64_t{8} << 20;

const std::byte* Payload(const BlobBuffer& blob) { return blob.bytes().data() + kBlobHeaderBytes; }
std::byte* Payload(BlobBuffer& blob) { return blob.bytes().data() + kBlobHeaderBytes; }

int64_t HeadStride(const MakeJob& job) {
  return int64_t{job.segment->tokens} * job.segment->context->ns.geometry.head_dim;
}

// Whether the job encodes or decodes a whole sequence. Those go one by one: each keeps all threads
// busy.
bool IsOfSequence(const MakeJob& job) {
  const bool codec = job.to == SegmentForm::kCompact || job.from == SegmentForm::kCompact;
  return codec && job.segment->context->sequence() != nullptr;
}

// A job under way.
struct Work {
  MakeJob* job = nullptr;
  std::shared_ptr<BlobBuffer> made;     // not sealed yet; null for forms without a fixed size
  std::shared_ptr<BlobBuffer> scratch;  // exact values that only lead to another form
  const uint16_t* values = nullptr;     // of the source, unless that is COMPACT
  KvDtype dtype = KvDtype::kBf16;       // of `values`
  const PartLayout* layout = nullptr;   // of COMPACT, as `values` are to be encoded
};

uint64_t DenseBytes(const std::vector<Work*>& work) {
  uint64_t bytes = 0;
  for (const Work* w : work) bytes += PartValues(*w->job->segment) * kKvDtypeBytes;
  return bytes;
}

using Clock = std::chrono::steady_clock;

uint64_t NanosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
}

absl::Status ReadArchived(Work& work, std::span<uint16_t> values, StoreMetrics& metrics) {
  const MakeJob& job = *work.job;
  const PartLayout* const rotated =
      job.to == SegmentForm::kCompact
          ? job.segment->context->layout->rotated_part(job.layer, job.part)
          : nullptr;
  if (rotated == nullptr) {
    return ReadArchivedBlob(*job.segment, job.layer, job.part, *job.source.blob, values, metrics);
  }
  work.layout = rotated;
  work.dtype = KvDtype::kBf16;
  return ReadArchivedBlobRotated(*job.segment, job.layer, job.part, *job.source.blob, values,
                                 metrics);
}

// Finds, unpacks or decodes the values of a job's source.
absl::Status ReadValues(Work& work, ComputeBackend& backend, MemoryBudget& budget,
                        StoreMetrics& metrics) {
  MakeJob& job = *work.job;
  if (job.from == SegmentForm::kExact) {
    work.values = reinterpret_cast<const uint16_t*>(Payload(*job.source.blob));
    return absl::OkStatus();
  }
  const size_t count = PartValues(*job.segment);
  uint16_t* to;
  if (!HasFixedSize(job.to) || job.to == SegmentForm::kCompact) {
    auto scratch = BlobBuffer::Allocate(budget, static_cast<int64_t>(count * kKvDtypeBytes));
    if (!scratch.ok()) return scratch.status();
    work.scratch = std::move(*scratch);
    to = reinterpret_cast<uint16_t*>(work.scratch->bytes().data());
  } else {
    to = reinterpret_cast<uint16_t*>(Payload(*work.made));
  }
  work.values = to;
  const StoredSegment& segment = *job.segment;
  const BlobBuffer& blob = *job.source.blob;
  absl::Status status;
  if (job.from == SegmentForm::kCompact) {
    status = ReadSequenceBlob(segment, job.layer, job.part, BasisOf(segment), blob, {to, count},
                              backend, metrics);
  } else if (job.from == SegmentForm::kArchived) {
    status = ReadArchived(work, {to, count}, metrics);
  } else {
    status = ReadLosslessBlob(blob, {to, count}, metrics);
  }
  if (absl::IsDataLoss(status)) {
    job.damage = std::move(status);
    return absl::OkStatus();
  }
  return status;
}

absl::Status Encode(KvDtype dtype, const std::vector<Work*>& work, ComputeBackend& backend,
                    StoreMetrics& metrics) {
  std::vector<EncodeJob> jobs;
  for (const Work* w : work) {
    jobs.push_back({.layout = w->layout,
                    .dense = w->values,
                    .head_stride = HeadStride(*w->job),
                    .payload = Payload(*w->made)});
  }
  const Clock::time_point begin = Clock::now();
  if (auto s = backend.Encode(dtype, jobs); !s.ok()) return s;
  StoreMetrics::Add(metrics.encode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.encoded_dense_bytes, DenseBytes(work));
  for (size_t i = 0; i < jobs.size(); ++i) {
    // Of the source against the original: 0 for exact data.
    const float before = work[i]->job->source.relative_error;
    work[i]->job->result.relative_error = before + (1 + before) * jobs[i].relative_error;
  }
  return absl::OkStatus();
}

absl::Status Decode(KvDtype dtype, const std::vector<Work*>& work, ComputeBackend& backend,
                    StoreMetrics& metrics) {
  std::vector<DecodeJob> jobs;
  for (const Work* w : work) {
    jobs.push_back({.layout = w->layout,
                    .payload = Payload(*w->job->source.blob),
                    .dense = reinterpret_cast<uint16_t*>(Payload(*w->made)),
                    .head_stride = HeadStride(*w->job)});
  }
  const Clock::time_point begin = Clock::now();
  if (auto s = backend.Decode(dtype, jobs); !s.ok()) return s;
  StoreMetrics::Add(metrics.decode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.decoded_dense_bytes, DenseBytes(work));
  return absl::OkStatus();
}

absl::Status MakeBatch(std::span<MakeJob> jobs, ComputeBackend& backend, MemoryBudget& budget,
                       StoreMetrics& metrics, const Patience& patience) {
  std::vector<Work> all(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (auto s = patience.Check(); !s.ok()) return s;
    MakeJob& job = jobs[i];
    all[i].job = &job;
    all[i].dtype = job.segment->context->ns.kv_dtype;
    const bool compact = job.from == SegmentForm::kCompact || job.to == SegmentForm::kCompact;
    if (compact && !IsOfSequence(job)) {
      all[i].layout = &job.segment->context->layout->part(job.layer, job.part);
    }
    job.result.relative_error = job.source.relative_error;  // unless it is measured now
    const bool sequence = IsOfSequence(job);
    if (HasFixedSize(job.to) && !(sequence && job.to == SegmentForm::kCompact)) {
      const uint64_t payload =
          ExpectedHeader(*job.segment, job.to, job.layer, job.part, 0).payload_bytes;
      auto made = BlobBuffer::Allocate(budget, static_cast<int64_t>(kBlobHeaderBytes + payload));
      if (!made.ok()) return made.status();
      all[i].made = std::move(*made);
    }
    if (job.from != SegmentForm::kCompact || sequence) {
      if (auto s = ReadValues(all[i], backend, budget, metrics); !s.ok()) return s;
    }
  }
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    std::vector<Work*> encode;
    std::vector<Work*> decode;
    for (Work& work : all) {
      if (work.dtype != dtype || !work.job->damage.ok()) continue;
      if (IsOfSequence(*work.job)) continue;
      if (work.job->to == SegmentForm::kCompact) encode.push_back(&work);
      if (work.job->from == SegmentForm::kCompact) decode.push_back(&work);
    }
    if (!encode.empty()) {
      if (auto s = Encode(dtype, encode, backend, metrics); !s.ok()) return s;
    }
    if (!decode.empty()) {
      if (auto s = Decode(dtype, decode, backend, metrics); !s.ok()) return s;
    }
  }
  for (Work& work : all) {
    if (auto s = patience.Check(); !s.ok()) return s;
    MakeJob& job = *work.job;
    if (!job.damage.ok()) continue;
    if (job.to == SegmentForm::kLossless) {
      auto made = MakeLosslessBlob(*job.segment, job.layer, job.part,
                                   {work.values, PartValues(*job.segment)}, budget, metrics);
      if (!made.ok()) return made.status();
      job.result = std::move(*made);
      continue;
    }
    if (job.to == SegmentForm::kCompact && IsOfSequence(job)) {
      auto made =
          MakeSequenceBlob(*job.segment, job.layer, job.part, BasisOf(*job.segment),
                           {work.values, PartValues(*job.segment)}, backend, budget, metrics);
      if (!made.ok()) return made.status();
      job.result = std::move(*made);
      continue;
    }
    if (job.to == SegmentForm::kArchived) {
      auto made = MakeArchivedBlob(*job.segment, job.layer, job.part,
                                   {work.values, PartValues(*job.segment)}, budget, metrics);
      if (!made.ok()) return made.status();
      job.result = std::move(*made);
      continue;
    }
    if (job.from == SegmentForm::kExact && job.to == SegmentForm::kDense) {
      std::memcpy(Payload(*work.made), work.values, PartValues(*job.segment) * kKvDtypeBytes);
    }
    SealBlob(ExpectedHeader(*job.segment, job.to, job.layer, job.part, job.result.relative_error),
             work.made->bytes());
    job.result.blob = std::move(work.made);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MakeForms(std::span<MakeJob> jobs, ComputeBackend& backend, MemoryBudget& budget,
                       StoreMetrics& metrics, const Patience& patience) {
  for (size_t first = 0; first < jobs.size();) {
    size_t count = 0;
    for (uint64_t bytes = 0; bytes < kBatchBytes && first + count < jobs.size(); ++count) {
      bytes += PartValues(*jobs[first + count].segment) * kKvDtypeBytes;
    }
    if (auto s = MakeBatch(jobs.subspan(first, count), backend, budget, metrics, patience); !s.ok())
      return s;
    first += count;
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
