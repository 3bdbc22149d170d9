// The stored and transmitted form of K or V of one layer of one segment (or of a whole sequence,
// which is one segment then): a 96-byte header and a payload. Byte-level description with a worked
// example: docs/format.md.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/base/content_hash.h"
#include "compute/base/geometry.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

// Values are stored in headers.
enum class SegmentForm : uint8_t {
  kExact = 1,     // [kv_heads][tokens][head_dim] as received
  kCompact = 2,   // laid out by the codec profile (segment_layout.h, sequence_layout.h)
  kDense = 3,     // same layout as exact, but decoded from compact: lossy
  kLossless = 4,  // exact, compressed bit for bit (lossless_codec.h)
  kArchived = 5,  // all channels transformed, quantised and entropy coded (archive_codec.h)
};

// Form values are from 1 to this.
inline constexpr int kLastForm = 5;

const char* FormName(SegmentForm form);

// Whether all bits are those received: relative_error 0, and no codec profile takes part.
constexpr bool IsExactData(SegmentForm form) {
  return form == SegmentForm::kExact || form == SegmentForm::kLossless;
}

// Whether geometry and profile decide the payload's size. Otherwise it depends on the values and is
// only bounded.
constexpr bool HasFixedSize(SegmentForm form) {
  return form != SegmentForm::kLossless && form != SegmentForm::kArchived;
}

inline constexpr size_t kBlobHeaderBytes = 96;
// What a lossless payload has at most beside the bytes of the exact one.
inline constexpr uint64_t kLosslessOverheadBytes = 8;
// No blob is larger, nor holds more tokens. Only whole sequences come near; segments are bounded by
// their namespace.
inline constexpr uint64_t kMaxBlobBytes = uint64_t{1} << 30;
inline constexpr uint32_t kMaxBlobTokens = uint32_t{1} << 20;

struct BlobHeader {
  SegmentForm form = SegmentForm::kExact;
  Part part = Part::kK;
  KvDtype dtype = KvDtype::kBf16;
  uint32_t layer = 0;
  uint32_t tokens = 0;
  uint16_t kv_heads = 0;
  uint16_t head_dim = 0;
  float relative_error = 0;  // ||X - X^||_F / ||X||_F, measured when encoded; 0 for exact data
  uint64_t payload_bytes = 0;
  Digest block_key;
  std::array<uint8_t, 16>
      profile_prefix{};      // first 16 bytes of the profile id; zero for exact data
  uint64_t first_token = 0;  // absolute position

  bool operator==(const BlobHeader&) const = default;
};

// Writes the header, with the checksum over header and payload, to the first kBlobHeaderBytes of
// `blob`; the payload must stand behind it already. Requires blob.size() == header size +
// payload_bytes.
void SealBlob(const BlobHeader& header, std::span<std::byte> blob);

// Checks size, magic, version, every enum and bound, and the checksum.
// DataLoss if the bytes are not a whole, undamaged blob of a known version.
absl::StatusOr<BlobHeader> OpenBlob(std::span<const std::byte> blob);

// The part of `blob` behind its header. Requires an opened blob.
inline std::span<const std::byte> BlobPayload(std::span<const std::byte> blob) {
  return blob.subspan(kBlobHeaderBytes);
}

}  // namespace fourierkv
