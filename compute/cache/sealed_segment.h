// A segment that a cache has just encoded, on its way to a store.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "compute/base/content_hash.h"
#include "compute/base/geometry.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

// K or V of one layer. The cache goes on reading the payload, so that only the first
// kBlobHeaderBytes of `blob` may be written.
struct SealedPart {
  float relative_error = 0;
  std::shared_ptr<std::vector<std::byte>> blob;  // room for the header, then the payload
};

struct SealedSegment {
  int64_t index = 0;  // positions [index * S, (index + 1) * S)
  KvDtype dtype = KvDtype::kBf16;
  std::vector<SealedPart> parts;  // index: layer * 2 + part
};

// Completes every blob of `segment` with a header for `block_key`; they can then be stored
// unchanged. `layout` must be the one that the segment was encoded with.
void WriteHeaders(const SealedSegment& segment, const ProfileLayout& layout,
                  const Digest& block_key);

}  // namespace fourierkv
