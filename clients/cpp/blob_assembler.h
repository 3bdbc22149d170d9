// Puts the pieces of a fetch together again.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/base/aligned_buffer.h"
#include "compute/codec/segment_blob.h"
#include "fourierkv/v1/kv_cache_service.pb.h"

namespace fourierkv {

// A whole blob that arrived and whose checksum and header were verified.
struct FetchedBlob {
  int request_index = 0;  // into GetSegmentsRequest.segments
  BlobHeader header;
  AlignedBuffer bytes;  // header and payload
};

// Blobs of one fetch that have begun to arrive. Holds no more bytes than the plan announced. Not
// thread safe.
class BlobAssembler {
 public:
  // `request` must outlive it.
  explicit BlobAssembler(const v1::GetSegmentsRequest& request) : request_(request) {}

  // What is to come: no blob may be larger than all of its segment.
  void Expect(const v1::GetPlan& plan);

  // Adds a piece; the blob if it is complete now. DataLoss if a piece is missing or out of order,
  // or the blob is damaged, not one that was asked for, or of a larger error than the request
  // allows.
  absl::StatusOr<std::optional<FetchedBlob>> Add(const v1::BlobPiece& piece);

  // Whether every blob that began is complete.
  bool empty() const { return open_.empty(); }

 private:
  struct Open {
    AlignedBuffer buffer;
    size_t filled;
  };
  using Key = std::tuple<uint32_t, uint32_t, int>;  // request, layer, part

  const v1::GetSegmentsRequest& request_;
  std::vector<uint64_t> most_;  // bytes of each segment, as planned
  std::map<Key, Open> open_;
};

}  // namespace fourierkv
