#include "kv_service/core/lossless_blob.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "compute/codec/lossless_codec.h"
#include "kv_service/core/blob_identity.h"

namespace fourierkv {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t NanosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
}

}  // namespace

size_t PartValues(const StoredSegment& segment) {
  return static_cast<size_t>(segment.context->ns.geometry.PartBytes(segment.tokens)) /
         kKvDtypeBytes;
}

absl::StatusOr<FormPart> MakeLosslessBlob(const StoredSegment& segment, int layer, Part part,
                                          std::span<const uint16_t> values, MemoryBudget& budget,
                                          StoreMetrics& metrics) {
  const Clock::time_point begin = Clock::now();
  auto room = BlobBuffer::Allocate(budget, static_cast<int64_t>(LosslessBound(values.size())));
  if (!room.ok()) return room.status();
  const auto size = LosslessEncode(values, (*room)->bytes());
  if (!size.ok()) return size.status();
  BlobHeader header = ExpectedHeader(segment, SegmentForm::kLossless, layer, part, 0);
  header.payload_bytes = *size;
  auto blob = BlobBuffer::Allocate(budget, static_cast<int64_t>(kBlobHeaderBytes + *size));
  if (!blob.ok()) return blob.status();
  std::memcpy((*blob)->bytes().data() + kBlobHeaderBytes, (*room)->bytes().data(), *size);
  SealBlob(header, (*blob)->bytes());
  StoreMetrics::Add(metrics.lossless_encode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.lossless_encoded_dense_bytes, values.size_bytes());
  return FormPart{std::move(*blob), 0};
}

absl::Status ReadLosslessBlob(const BlobBuffer& blob, std::span<uint16_t> values,
                              StoreMetrics& metrics) {
  const Clock::time_point begin = Clock::now();
  if (auto s = LosslessDecode(BlobPayload(blob.bytes()), values); !s.ok()) return s;
  StoreMetrics::Add(metrics.lossless_decode_nanoseconds, NanosecondsSince(begin));
  StoreMetrics::Add(metrics.lossless_decoded_dense_bytes, values.size_bytes());
  return absl::OkStatus();
}

}  // namespace fourierkv
