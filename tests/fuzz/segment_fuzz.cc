// Segment blobs, and the payload of a compact one. The checksum is made right first: somebody who
// sends nonsense can compute it too.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "compute/base/content_hash.h"
#include "compute/codec/payload_check.h"
#include "compute/codec/profile.h"
#include "compute/codec/reference_codec.h"
#include "compute/codec/segment_blob.h"
#include "compute/codec/segment_layout.h"

namespace {

using namespace fourierkv;

constexpr size_t kPayloadBytesAt = 24;
constexpr size_t kChecksumAt = 88;

const ProfileLayout& Layout() {
  static const ProfileLayout* const layout = [] {
    auto profile = CodecProfile::FromFile(FOURIERKV_TEST_DATA "/golden/profile.json");
    if (!profile.ok()) std::abort();
    return new ProfileLayout(*profile);
  }();
  return *layout;
}

void CheckCompact(std::span<const std::byte> payload) {
  const PartLayout& layout = Layout().part(0, Part::kK);
  if (!CheckPayload(layout, payload).ok()) return;
  for (const double value : reference::DecodePart(layout, payload)) {
    if (!std::isfinite(value)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> blob(size);
  if (size > 0) std::memcpy(blob.data(), data, size);
  (void)OpenBlob(blob);
  if (size < kBlobHeaderBytes) return 0;
  const uint64_t payload_bytes = size - kBlobHeaderBytes;
  std::memcpy(blob.data() + kPayloadBytesAt, &payload_bytes, sizeof payload_bytes);
  const uint64_t checksum =
      Checksum(std::span(blob).first(kChecksumAt), std::span(blob).subspan(kBlobHeaderBytes));
  std::memcpy(blob.data() + kChecksumAt, &checksum, sizeof checksum);
  const auto header = OpenBlob(blob);
  if (header.ok()) {
    // What is taken can be sealed again, to the same bytes.
    std::vector<std::byte> again = blob;
    SealBlob(*header, again);
    if (again != blob) std::abort();
  }
  CheckCompact(BlobPayload(blob));
  return 0;
}
