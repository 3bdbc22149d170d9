// Whether what was fetched is what was put.

#pragma once

#include "absl/status/status.h"
#include "clients/cpp/blob_assembler.h"
#include "clients/loadtest/payload_maker.h"
#include "clients/loadtest/value_source.h"
#include "compute/backend/compute_backend.h"

namespace fourierkv::loadtest {

// Thread safe.
class Verifier {
 public:
  // `layout` may be null if nothing compressed is fetched. All outlive it.
  Verifier(const ValueSource* values, int segment_tokens, const ProfileLayout* layout,
           ComputeBackend* backend)
      : values_(values), segment_tokens_(segment_tokens), layout_(layout), backend_(backend) {}

  // Of a blob whose checksum and key are right already. Exact and lossless values must be those of
  // the key, bit for bit; compact and dense ones must be as near to them as the blob's header says,
  // plus what rounding them to bf16 adds. DataLoss naming segment, layer, part and what is wrong.
  absl::Status Check(const FetchedBlob& blob, const SegmentPlace& expected) const;

 private:
  absl::Status CheckValues(const FetchedBlob& blob, const SegmentPlace& expected) const;

  const ValueSource* values_;
  const int segment_tokens_;
  const ProfileLayout* layout_;
  ComputeBackend* backend_;
};

}  // namespace fourierkv::loadtest
