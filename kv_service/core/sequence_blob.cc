#include "kv_service/core/sequence_blob.h"

#include <chrono>
#include <utility>

#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/segment_layout.h"
#include "compute/codec/sequence_payload_check.h"
#include "compute/sequence/sequence_codec.h"
#include "kv_service/core/blob_identity.h"

namespace fourierkv {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t NanosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
}

const SequencePart& LayoutOf(const StoredSegment& segment, int layer, Part part) {
  return segment.context->sequence()->part(layer, part);
}

// Calls `work` with the backend's threads, or with the caller's alone.
template <typename Work>
auto OnThreads(ComputeBackend& backend, const Work& work) {
  if (ThreadPool* const threads = backend.host_threads(); threads != nullptr) return work(*threads);
  ThreadPool alone(1);
  return work(alone);
}

}  // namespace

std::shared_ptr<const SequenceBasis> BasisOf(const StoredSegment& segment) {
  return MakeSequenceBasis(segment.context->sequence()->scope(), segment.tokens, segment.capacity);
}

absl::StatusOr<FormPart> MakeSequenceBlob(const StoredSegment& segment, int layer, Part part,
                                          const std::shared_ptr<const SequenceBasis>& basis,
                                          std::span<const uint16_t> values, ComputeBackend& backend,
                                          MemoryBudget& budget, StoreMetrics& metrics) {
  const Clock::time_point begin = Clock::now();
  BlobHeader header = ExpectedHeader(segment, SegmentForm::kCompact, layer, part, 0);
  auto blob =
      BlobBuffer::Allocate(budget, static_cast<int64_t>(kBlobHeaderBytes + header.payload_bytes));
  if (!blob.ok()) return blob.status();
  const auto error = OnThreads(backend, [&](ThreadPool& threads) {
    return EncodeSequence(LayoutOf(segment, layer, part), segment.tokens, segment.capacity, basis,
                          segment.context->ns.kv_dtype, values.data(),
                          (*blob)->bytes().subspan(kBlobHeaderBytes), threads);
  });
  if (!error.ok()) return error.status();
  header.relative_error = *error;
  SealBlob(header, (*blob)->bytes());
  StoreMetrics::Add(metrics.encode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.encoded_dense_bytes, values.size_bytes());
  return FormPart{std::move(*blob), *error};
}

absl::Status ReadSequenceBlob(const StoredSegment& segment, int layer, Part part,
                              const std::shared_ptr<const SequenceBasis>& basis,
                              const BlobBuffer& blob, std::span<uint16_t> values,
                              ComputeBackend& backend, StoreMetrics& metrics) {
  const Clock::time_point begin = Clock::now();
  if (auto s = CheckSequenceBlob(segment, layer, part, blob); !s.ok()) {
    return absl::DataLossError(s.message());
  }
  OnThreads(backend, [&](ThreadPool& threads) {
    DecodeSequence(LayoutOf(segment, layer, part), segment.tokens, basis,
                   segment.context->ns.kv_dtype, BlobPayload(blob.bytes()), values.data(), threads);
  });
  StoreMetrics::Add(metrics.decode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.decoded_dense_bytes, values.size_bytes());
  return absl::OkStatus();
}

absl::Status CheckSequenceBlob(const StoredSegment& segment, int layer, Part part,
                               const BlobBuffer& blob) {
  return CheckSequencePayload(LayoutOf(segment, layer, part), segment.tokens, segment.capacity,
                              segment.context->ns.kv_dtype, BlobPayload(blob.bytes()));
}

}  // namespace fourierkv
