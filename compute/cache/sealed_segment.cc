#include "compute/cache/sealed_segment.h"

#include <algorithm>

#include "compute/codec/segment_blob.h"

namespace fourierkv {

void WriteHeaders(const SealedSegment& segment, const ProfileLayout& layout,
                  const Digest& block_key) {
  for (size_t i = 0; i < segment.parts.size(); ++i) {
    const int layer = static_cast<int>(i / 2);
    const Part part = kParts[i % 2];
    const PartLayout& part_layout = layout.part(layer, part);
    BlobHeader header;
    header.form = SegmentForm::kCompact;
    header.part = part;
    header.dtype = segment.dtype;
    header.layer = static_cast<uint32_t>(layer);
    header.tokens = static_cast<uint32_t>(part_layout.segment_tokens);
    header.kv_heads = static_cast<uint16_t>(part_layout.kv_heads);
    header.head_dim = static_cast<uint16_t>(part_layout.head_dim);
    header.relative_error = segment.parts[i].relative_error;
    header.payload_bytes = static_cast<uint64_t>(part_layout.payload_bytes);
    header.block_key = block_key;
    std::copy_n(layout.id().bytes.begin(), header.profile_prefix.size(),
                header.profile_prefix.begin());
    header.first_token = static_cast<uint64_t>(segment.index) * part_layout.segment_tokens;
    SealBlob(header, *segment.parts[i].blob);
  }
}

}  // namespace fourierkv
