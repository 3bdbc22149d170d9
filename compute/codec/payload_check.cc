#include "compute/codec/payload_check.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

// Encoders refuse input beyond 1e30; rotations and bases make at most sqrt(512 * 1024) times that.
constexpr float kLargest = 0x1p110f;

float LoadBf16(std::span<const std::byte> payload, int64_t at) {
  return Bf16ToFloat(static_cast<uint16_t>(std::to_integer<unsigned>(payload[at]) |
                                           std::to_integer<unsigned>(payload[at + 1]) << 8));
}

// The first of `count` bf16 at `at` that is not from `low` to kLargest, or -1. NaN is not.
int64_t FindBadBf16(std::span<const std::byte> payload, int64_t at, int64_t count, float low) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = LoadBf16(payload, at + 2 * i);
    if (!(value >= low && value <= kLargest)) return i;
  }
  return -1;
}

struct Fault {
  const char* what = nullptr;  // null: none
  int64_t channel = 0;         // index in the band
};

Fault FindFault(const BandLayout& band, int segment_tokens, std::span<const std::byte> payload) {
  const int64_t n = band.size;
  if (!band.scaled()) {
    const int64_t values = n * (band.spectral() ? band.coefficients : segment_tokens);
    const int64_t bad = FindBadBf16(payload, band.data_offset, values, -kLargest);
    if (bad < 0) return {};
    return {"a value is not finite or too large", band.spectral() ? bad % n : bad / segment_tokens};
  }
  if (const int64_t bad = FindBadBf16(payload, band.scale_offset, n, 0); bad >= 0) {
    return {"the scale is negative, not finite or too large", bad};
  }
  if (band.spectral()) {
    const auto c = payload.subspan(band.data_offset, n * band.coefficients);
    const auto bad = std::find(c.begin(), c.end(), std::byte{0x80});
    return bad == c.end() ? Fault{} : Fault{"a coefficient is -128", (bad - c.begin()) % n};
  }
  const int64_t bad = FindBadBf16(payload, band.zero_offset, n, -kLargest);
  return bad < 0 ? Fault{} : Fault{"the offset is not finite or too large", bad};
}

int64_t DataEnd(const BandLayout& band, int segment_tokens) {
  const int64_t values =
      static_cast<int64_t>(band.size) * (band.spectral() ? band.coefficients : segment_tokens);
  return band.data_offset + values * band.bits / 8;
}

int64_t BandStart(const BandLayout& band) {
  return band.scaled() ? band.scale_offset : band.data_offset;
}

bool IsZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte x) { return x == std::byte{0}; });
}

}  // namespace

absl::Status CheckPayload(const PartLayout& layout, std::span<const std::byte> payload) {
  if (payload.size() != static_cast<uint64_t>(layout.payload_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "payload has ", payload.size(), " bytes; the profile's layout has ", layout.payload_bytes));
  }
  for (int h = 0; h < layout.kv_heads; ++h) {
    const HeadLayout& head = layout.heads[h];
    for (size_t b = 0; b < head.bands.size(); ++b) {
      const BandLayout& band = head.bands[b];
      const Fault fault = FindFault(band, layout.segment_tokens, payload);
      if (fault.what != nullptr) {
        return absl::InvalidArgumentError(absl::StrCat("payload: head ", h, ", band ", b,
                                                       ", channel ", band.channels[fault.channel],
                                                       ": ", fault.what));
      }
      const int64_t end = DataEnd(band, layout.segment_tokens);
      const int64_t next =
          b + 1 < head.bands.size() ? BandStart(head.bands[b + 1]) : head.offset + head.bytes;
      const int64_t offsets_end = band.offset() ? band.zero_offset + 2 * band.size : end;
      const int64_t data = band.offset() ? band.data_offset : end;
      if (!IsZero(payload.subspan(offsets_end, data - offsets_end)) ||
          !IsZero(payload.subspan(end, next - end))) {
        return absl::InvalidArgumentError(
            absl::StrCat("payload: head ", h, ", band ", b, ": padding is not zero"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
