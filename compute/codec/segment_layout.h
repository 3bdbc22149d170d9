// Where everything stands inside the payload of a compact segment. docs/format.md has a worked
// example.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "compute/base/unique_id.h"
#include "compute/codec/basis.h"
#include "compute/codec/profile.h"

namespace fourierkv {

class ArchiveCodec;
class SequenceLayout;

// Byte offsets are from the start of the part's payload. `n` = channels, S = segment tokens.
//
//   spectral 8 bits:   bf16 scale[n]; int8 c[M][n]          coefficient = scale[j] * c[m][j]
//   spectral 16 bits:  bf16 c[M][n]
//   resident 2 bits:   bf16 scale[n], offset[n]; u32 w[n][S/16]
//                      token t = k*(S/16) + i stands in bits 2k..2k+1 of word i
//   resident 3 bits:   the lower two bits as above, then u32 high[n][S/32]: the upper bit of
//                      token t = k*(S/32) + i stands in bit k of word i
//   resident 4 bits:   bf16 scale[n], offset[n]; u32 w[n][S/8]
//                      token t = k*(S/8) + i stands in bits 4k..4k+3 of word i
//   resident 8 bits:   bf16 scale[n], offset[n]; u8 q[n][S]
//   resident 16 bits:  bf16 x[n][S]
//
// Integers q of residents mean offset[j] + scale[j] * q. Bands, and the words or bytes of residents
// behind their scales and offsets, start at multiples of 16 bytes; padding is zero.
struct BandLayout {
  int coefficients = 0;  // M; 0 for resident bands
  int bits = 0;
  int size = 0;                        // n
  const uint16_t* channels = nullptr;  // n ids, owned by the PartLayout
  int first = 0;  // position of channels[0] in the head's channel order (bands concatenated)
  int64_t scale_offset = 0;
  int64_t zero_offset = 0;  // the offsets' offset; residents of 2 to 8 bits only
  int64_t data_offset = 0;
  int64_t high_offset = 0;  // the upper bits' offset; resident 3 bits only

  bool spectral() const { return coefficients > 0; }
  bool scaled() const { return bits != 16; }  // integers with a scale, and an offset if resident
  bool offset() const { return scaled() && !spectral(); }
};

struct HeadLayout {
  int64_t offset = 0;  // where the head's first band starts
  int64_t bytes = 0;   // to the end of its last band, padding included
  int max_coefficients = 0;
  // U, row-major [head_dim][head_dim], owned by the PartLayout; null if the head is not rotated.
  // Bands hold X U: X [S][head_dim] has channels, X U has columns.
  const float* rotation = nullptr;
  std::vector<BandLayout> bands;
};

// K or V of one layer. Immutable; shared by every segment, thread and request.
struct PartLayout {
  PartLayout() = default;
  PartLayout(PartLayout&&) = default;  // no copies: they would point into the original's channels
  PartLayout& operator=(PartLayout&&) = default;

  // No other layout of this process has or had it, but one that this was moved to: a name for what
  // is derived from the layout and kept.
  uint64_t id = NextUniqueId();
  int kv_heads = 0;
  int head_dim = 0;
  int segment_tokens = 0;
  int64_t payload_bytes = 0;
  std::shared_ptr<const Basis> basis;  // as many columns as the profile's largest M (at least 1)
  std::vector<HeadLayout> heads;
  std::vector<uint16_t> channels;  // what BandLayout::channels points into
  std::vector<float> rotations;    // what HeadLayout::rotation points into
};

// All parts of a validated profile. One with `sequence` has no parts of segments: sequence() lays
// it out.
class ProfileLayout {
 public:
  explicit ProfileLayout(const CodecProfile& profile);
  ~ProfileLayout();
  ProfileLayout(const ProfileLayout&) = delete;
  ProfileLayout& operator=(const ProfileLayout&) = delete;

  const CodecProfile& profile() const { return profile_; }
  const Digest& id() const { return id_; }
  const PartLayout& part(int layer, Part part) const {
    return parts_[static_cast<size_t>(layer) * 2 + static_cast<size_t>(part)];
  }
  // Null unless the profile spans whole sequences.
  const std::shared_ptr<const SequenceLayout>& sequence() const { return sequence_; }
  // Null if the profile has no archive section. Made when it is first asked for; it then takes
  // eight bytes of memory for every entry of the profile's rotations. Thread safe.
  const ArchiveCodec* archive() const;
  // What encodes the values of ArchiveCodec::DecodeRotated to the payload of part(): the same
  // layout without the rotations that these values have already. Null if they have none. Made with
  // archive(). Thread safe.
  const PartLayout* rotated_part(int layer, Part part) const;
  // Payload bytes of K and V of all layers of one segment.
  int64_t SegmentPayloadBytes() const;
  // Payload bits per element of the original, over K and V of all layers; of the longest sequence
  // if the profile spans whole ones.
  double BitsPerElement() const;

 private:
  CodecProfile profile_;
  Digest id_;
  std::vector<PartLayout> parts_;
  std::shared_ptr<const SequenceLayout> sequence_;
  mutable std::once_flag archive_once_;
  mutable std::unique_ptr<const ArchiveCodec> archive_;
  mutable std::vector<std::unique_ptr<const PartLayout>> rotated_parts_;  // as parts_, or empty
};

}  // namespace fourierkv
