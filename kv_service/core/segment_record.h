// How tiers write segments down: one record for each form, one small description for each segment.
// Byte by byte in docs/format.md.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kv_service/core/memory_budget.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// The fields of a valid namespace. DecodeNamespace takes exactly what EncodeNamespace gives; else
// DataLoss.
std::string EncodeNamespace(const CacheNamespace& ns);
absl::StatusOr<CacheNamespace> DecodeNamespace(absl::string_view bytes);

// Gives the context of an encoded namespace (NamespaceDirectory::Resolve). Any error: unknown.
using NamespaceResolver =
    std::function<absl::StatusOr<std::shared_ptr<const NamespaceContext>>(absl::string_view)>;

// A description: everything that SegmentTier::Describe tells of one segment, with a checksum.
std::string EncodeDescription(const TierSegment& segment);

// DataLoss unless `bytes` are a whole, undamaged description of a segment that can be; the
// resolver's error if its namespace is not known.
absl::StatusOr<TierSegment> DecodeDescription(absl::string_view bytes,
                                              const NamespaceResolver& resolve);

// The record of one form: header, identity, sizes, blobs, and XXH3-128 of all that. Refers to the
// form's blobs, which must outlive it; copies none of them.
class RecordWriter {
 public:
  // Requires that `segment` holds `form`.
  RecordWriter(const StoredSegment& segment, SegmentForm form);
  RecordWriter(const RecordWriter&) = delete;
  RecordWriter& operator=(const RecordWriter&) = delete;

  int64_t bytes() const { return bytes_; }

  // The record cut into chunks of `chunk_bytes` (the last may be shorter), each as the pieces whose
  // concatenation it is. Valid while this writer lives.
  std::vector<std::vector<std::span<const std::byte>>> Chunks(int64_t chunk_bytes) const;

 private:
  std::string head_;
  FormPtr form_;
  std::string checksum_;
  int64_t bytes_ = 0;
};

// How many bytes the record of a form has whose blobs have `form_bytes` together.
int64_t RecordBytes(const StoredSegment& segment, int64_t form_bytes);

// Reads a record as its bytes come, in any pieces. Whatever they are, it allocates no more than a
// form of this segment can have, and reserves that first.
class RecordReader {
 public:
  // `segment` is what the record must be of, its forms ignored. The references must outlive it.
  RecordReader(const StoredSegment& segment, SegmentForm form, MemoryBudget& budget);
  ~RecordReader();
  RecordReader(const RecordReader&) = delete;
  RecordReader& operator=(const RecordReader&) = delete;

  // The next bytes. DataLoss as soon as they cannot be those of the record; ResourceExhausted if
  // the budget has no room for its blobs. After an error only destruction is allowed.
  absl::Status Add(std::span<const std::byte> bytes);

  // The form, if everything came and every checksum is right; else DataLoss.
  absl::StatusOr<FormPtr> Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fourierkv
