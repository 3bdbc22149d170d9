// Turns the chunks of a put into sealed blobs, encoding what is to be compact.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_service/core/part_assembly.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/put_plan.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

class ComputeBackend;
class SequenceBasis;

// Gaps that all parts of a put may have together: what is known of them is charged to no budget.
inline constexpr int64_t kMaxGapsPerPut = 16384;

// The payload of one put, by `slot`: the position of a segment in its plan. Memory for a part, raw
// and encoded, is reserved when its first chunk comes (of whole sequences, raw only). Complete
// parts wait until a batch is worth a call of the encoder. Whether a segment is within the plan's
// error bound is known with its last part; with a bound, exact data is therefore held until Take.
// Arguments slot, layer and part must be in range. Not thread safe.
class PartCollector {
 public:
  struct Totals {
    int64_t bytes_received = 0;
    int64_t encoded_dense_bytes = 0;
    double encode_seconds = 0;
    float max_relative_error = 0;
    int64_t bounded_segments = 0;
  };

  // The references must outlive it, but for the plan. Encoding ends as Patience::Check says when
  // `patience` is over.
  PartCollector(const PutPlan& plan, const std::vector<PlannedSegment>& segments,
                MemoryBudget& budget, ComputeBackend& backend, StoreMetrics& metrics,
                Patience patience);

  // Bytes that are to come for a part, or the most of them if its form has no fixed size.
  int64_t PartBytes(size_t slot, int layer, Part part) const;

  // As PutSession::AddChunk; `checksum` was verified. `fatal` tells whether the parts are now
  // useless.
  absl::Status Add(size_t slot, int layer, Part part, int64_t part_bytes, int64_t offset,
                   std::span<const std::byte> bytes, bool* fatal);

  // FailedPrecondition naming the first part that is not complete, of the segments that are needed.
  absl::Status CheckComplete() const;

  // Encodes what still waits.
  absl::Status Flush();

  // The segment with its forms; without them if it is not needed. Requires completeness and Flush.
  StoredSegment Take(size_t slot);

  // Frees all parts.
  void Clear();

  const Totals& totals() const { return totals_; }

 private:
  struct PartState {
    PartAssembly assembly;                // of raw bytes, or of a whole blob
    std::shared_ptr<BlobBuffer> raw;      // complete exact values, behind room for a header
    std::shared_ptr<BlobBuffer> encoded;  // where the encoder writes; null if it has nothing to do
    FormPart exact;                       // in the plan's exact_form
    FormPart compact;                     // or archived: in the plan's compressed_form
  };

  int64_t Id(size_t slot, int layer, Part part) const;
  size_t Slot(int64_t id) const { return static_cast<size_t>(id / 2 / layers_); }
  int Layer(int64_t id) const { return static_cast<int>(id / 2 % layers_); }
  static Part PartOf(int64_t id) { return static_cast<Part>(id % 2); }
  absl::Status Fault(int64_t id,
                     const absl::Status& status) const;  // with the part's name before it

  StoredSegment Identity(size_t slot) const;
  absl::Status CheckPartBytes(int64_t id, int64_t part_bytes) const;
  absl::StatusOr<PartState> Start(int64_t id, int64_t part_bytes) const;
  absl::Status Write(PartAssembly& assembly, int64_t offset, std::span<const std::byte> bytes);
  absl::Status Finish(int64_t id, PartState& state);
  // Encodes the waiting parts, leaving each in its `compact`.
  absl::Status EncodeCompact();
  absl::Status EncodeSequences();
  absl::Status EncodeArchived();
  absl::Status FinishCompact(int64_t id, PartState& state);
  // The blob that came, which must be the one that belongs here.
  absl::StatusOr<BlobHeader> OpenReceived(int64_t id, const PartState& state,
                                          SegmentForm form) const;
  absl::Status Unpack(int64_t id, PartState& state) const;
  absl::Status CheckValues(int64_t id, const BlobBuffer& raw) const;
  // Whether exact data of a complete part is still of use.
  bool HoldsExact(size_t slot) const;
  absl::Status KeepExact(int64_t id, PartState& state) const;
  FormPart Seal(int64_t id, SegmentForm form, float relative_error,
                std::shared_ptr<BlobBuffer> blob) const;

  const std::shared_ptr<const NamespaceContext> context_;
  const PutPayload payload_;
  const SegmentForm exact_form_;
  const SegmentForm compressed_form_;
  const float max_relative_error_;
  const int64_t sequence_capacity_;
  const std::vector<PlannedSegment>& segments_;
  MemoryBudget& budget_;
  ComputeBackend& backend_;
  StoreMetrics& metrics_;
  const Patience patience_;
  const int layers_;
  absl::flat_hash_map<int64_t, PartState> parts_;  // by Id: those that bytes came for
  int64_t gaps_ = 0;                               // in all of them
  std::vector<int64_t> waiting_;                   // complete, to be encoded
  int64_t waiting_bytes_ = 0;
  std::shared_ptr<const SequenceBasis> basis_;  // of a whole sequence, once it is encoded
  Totals totals_;
};

}  // namespace fourierkv
