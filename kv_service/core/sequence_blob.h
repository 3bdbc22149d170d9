// Blobs of the COMPACT form of whole sequences.

#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/codec/sequence_layout.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

class ComputeBackend;
class SequenceBasis;

// The basis of `segment`, a whole sequence: for all its parts, so that it is made once. Null where
// every token is exact.
std::shared_ptr<const SequenceBasis> BasisOf(const StoredSegment& segment);

// A sealed blob of exact `values`, [kv_heads][tokens][head_dim], made on the backend's host
// threads. InvalidArgument for values that cannot be encoded; ResourceExhausted if `budget` has no
// room.
absl::StatusOr<FormPart> MakeSequenceBlob(const StoredSegment& segment, int layer, Part part,
                                          const std::shared_ptr<const SequenceBasis>& basis,
                                          std::span<const uint16_t> values, ComputeBackend& backend,
                                          MemoryBudget& budget, StoreMetrics& metrics);

// The values of an opened blob. DataLoss if its payload is not one of this sequence.
absl::Status ReadSequenceBlob(const StoredSegment& segment, int layer, Part part,
                              const std::shared_ptr<const SequenceBasis>& basis,
                              const BlobBuffer& blob, std::span<uint16_t> values,
                              ComputeBackend& backend, StoreMetrics& metrics);

// InvalidArgument unless the blob's payload is one of this sequence and decodes to finite values.
absl::Status CheckSequenceBlob(const StoredSegment& segment, int layer, Part part,
                               const BlobBuffer& blob);

}  // namespace fourierkv
