// The worked example of docs/format.md: one small segment, made by integer formulas.

#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "compute/base/bfloat16.h"
#include "compute/codec/profile.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {

inline constexpr char kGoldenProfileFile[] = "profile.json";
inline constexpr char kGoldenPayloadFile[] = "k.payload";
inline constexpr char kGoldenBlobFile[] = "k.blob";
inline constexpr char kRotatedProfileFile[] = "rotated.json";
inline constexpr char kRotatedPayloadFile[] = "rotated.payload";

// K has one band of every kind; V is plain int8.
inline CodecProfile GoldenProfile() {
  CodecProfile profile;
  profile.name = "golden";
  profile.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 16};
  profile.segment_tokens = 128;
  profile.heads.resize(2);
  profile.heads[0].bands = {{2, 8, {0, 1, 2, 8, 9, 10}},
                            {0, 4, {3, 4, 5, 11, 12}},
                            {0, 8, {6, 13, 14}},
                            {0, 16, {7, 15}}};
  profile.heads[1].bands = {{0, 8, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}};
  return profile;
}

// The same input, rotated by a Hadamard matrix, in the forms that the first example has not.
inline CodecProfile RotatedGoldenProfile() {
  CodecProfile profile = GoldenProfile();
  profile.name = "rotated";
  profile.evidence = {{"made_by", "hand"}};
  profile.heads[0].bands = {
      {2, 16, {0, 1, 2, 3, 4, 5}}, {0, 2, {6, 7, 8, 9, 10}}, {0, 3, {11, 12, 13, 14, 15}}};
  for (unsigned d = 0; d < 16; ++d) {
    for (unsigned j = 0; j < 16; ++j) {
      profile.heads[0].rotation.push_back(std::popcount(d & j) % 2 == 0 ? 8192 : -8192);
    }
  }
  return profile;
}

// Token t of channel d, in sixteenths: ramps in spectral channels, sawteeth in the others. Every
// value is exact in bf16.
inline int GoldenSixteenths(int t, int d) {
  return d % 8 < 3 ? 3 * d + t / 2 - 20 : (5 * t + 3 * d + t * d % 7) % 97 - 48;
}

inline std::vector<uint16_t> GoldenDense() {
  std::vector<uint16_t> dense;
  for (int t = 0; t < 128; ++t) {
    for (int d = 0; d < 16; ++d) {
      dense.push_back(FloatToBf16(static_cast<float>(GoldenSixteenths(t, d)) / 16));
    }
  }
  return dense;
}

// The header of K: segment 3 of a sequence under a block key of bytes 0, 1, 2, ...
inline BlobHeader GoldenHeader(uint64_t payload_bytes, double relative_error) {
  BlobHeader header;
  header.form = SegmentForm::kCompact;
  header.part = Part::kK;
  header.dtype = KvDtype::kBf16;
  header.layer = 0;
  header.tokens = 128;
  header.kv_heads = 1;
  header.head_dim = 16;
  header.relative_error = static_cast<float>(relative_error);
  header.payload_bytes = payload_bytes;
  for (size_t i = 0; i < 32; ++i) header.block_key.bytes[i] = static_cast<uint8_t>(i);
  const Digest id = GoldenProfile().Id();
  std::copy_n(id.bytes.begin(), header.profile_prefix.size(), header.profile_prefix.begin());
  header.first_token = 3 * 128;
  return header;
}

}  // namespace fourierkv
