#include "kv_service/core/archived_blob.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "compute/codec/archive_codec.h"
#include "compute/codec/segment_layout.h"
#include "kv_service/core/blob_identity.h"

namespace fourierkv {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t NanosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
}

const ArchiveCodec& Codec(const StoredSegment& segment) {
  return *segment.context->layout->archive();
}

// Adds a decoding to the metrics if it went well; returns `status`.
absl::Status Count(const absl::Status& status, Clock::time_point begin,
                   std::span<const uint16_t> values, StoreMetrics& metrics) {
  if (!status.ok()) return status;
  StoreMetrics::Add(metrics.archive_decode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.archive_decoded_dense_bytes, values.size_bytes());
  return absl::OkStatus();
}

}  // namespace

bool CanArchive(const NamespaceContext& context) {
  return context.layout != nullptr && context.layout->profile().archive.has_value();
}

absl::StatusOr<FormPart> MakeArchivedBlob(const StoredSegment& segment, int layer, Part part,
                                          std::span<const uint16_t> values, MemoryBudget& budget,
                                          StoreMetrics& metrics) {
  const Clock::time_point begin = Clock::now();
  const auto archived = Codec(segment).Encode(layer, part, segment.context->ns.kv_dtype,
                                              segment.first_token(), values);
  if (!archived.ok()) return archived.status();
  BlobHeader header =
      ExpectedHeader(segment, SegmentForm::kArchived, layer, part, archived->relative_error);
  header.payload_bytes = archived->payload.size();
  auto blob =
      BlobBuffer::Allocate(budget, static_cast<int64_t>(kBlobHeaderBytes + header.payload_bytes));
  if (!blob.ok()) return blob.status();
  std::memcpy((*blob)->bytes().data() + kBlobHeaderBytes, archived->payload.data(),
              archived->payload.size());
  SealBlob(header, (*blob)->bytes());
  StoreMetrics::Add(metrics.archive_encode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.archive_encoded_dense_bytes, values.size_bytes());
  return FormPart{std::move(*blob), archived->relative_error};
}

absl::Status ReadArchivedBlob(const StoredSegment& segment, int layer, Part part,
                              const BlobBuffer& blob, std::span<uint16_t> values,
                              StoreMetrics& metrics) {
  const Clock::time_point begin = Clock::now();
  const absl::Status status =
      Codec(segment).Decode(layer, part, segment.context->ns.kv_dtype, segment.first_token(),
                            BlobPayload(blob.bytes()), values);
  return Count(status, begin, values, metrics);
}

absl::Status ReadArchivedBlobRotated(const StoredSegment& segment, int layer, Part part,
                                     const BlobBuffer& blob, std::span<uint16_t> values,
                                     StoreMetrics& metrics) {
  const Clock::time_point begin = Clock::now();
  const absl::Status status = Codec(segment).DecodeRotated(layer, part, segment.first_token(),
                                                           BlobPayload(blob.bytes()), values);
  return Count(status, begin, values, metrics);
}

}  // namespace fourierkv
