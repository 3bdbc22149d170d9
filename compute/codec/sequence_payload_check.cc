#include "compute/codec/sequence_payload_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

constexpr float kLargestValue = 1e30f;
constexpr float kLargestCoefficient = 0x1p64f;
constexpr float kLargestGain = 0x1p40f;
constexpr float kLargest = 0x1p100f;

template <typename T>
T Load(std::span<const std::byte> payload, int64_t offset) {
  T value;
  std::memcpy(&value, payload.data() + offset, sizeof value);
  return value;
}

class Checker {
 public:
  Checker(std::span<const std::byte> payload, int head) : payload_(payload), head_(head) {}

  // `count` floats (or bf16) from `offset` on, from `low` to `high`; NaN is not.
  template <typename T>
  absl::Status Values(const char* what, int64_t offset, int64_t count, float low, float high) {
    for (int64_t i = 0; i < count; ++i) {
      const T bits = Load<T>(payload_, offset + i * static_cast<int64_t>(sizeof(T)));
      float value;
      if constexpr (sizeof(T) == 2) {
        value = Bf16ToFloat(bits);
      } else {
        value = bits;
      }
      if (!(value >= low && value <= high)) {
        return absl::InvalidArgumentError(absl::StrCat("head ", head_, ": ", what, " ", i, " is ",
                                                       value, "; it must be from ", low, " to ",
                                                       high));
      }
    }
    return Padding(offset + count * static_cast<int64_t>(sizeof(T)));
  }

  // Zeros up to a multiple of 16 bytes.
  absl::Status Padding(int64_t offset) {
    for (; offset % 16 != 0; ++offset) {
      if (payload_[offset] != std::byte{0}) {
        return absl::InvalidArgumentError(
            absl::StrCat("head ", head_, ": padding byte ", offset, " is not zero"));
      }
    }
    return absl::OkStatus();
  }

 private:
  std::span<const std::byte> payload_;
  int head_;
};

}  // namespace

bool AllEncodable(KvDtype dtype, const uint16_t* values, int64_t n) {
  // Patterns without the sign are ordered as magnitudes are; infinity and NaN are the largest.
  uint16_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, static_cast<uint16_t>(values[i] & 0x7fff));
  }
  return KvToFloat(largest, dtype) <= kLargestValue;
}

absl::Status CheckSequencePayload(const SequencePart& part, int64_t tokens, int64_t capacity,
                                  KvDtype dtype, std::span<const std::byte> payload) {
  if (absl::Status s = CheckSequenceShape(tokens, capacity); !s.ok()) return s;
  const int64_t expected = part.PayloadBytes(tokens);
  if (static_cast<int64_t>(payload.size()) != expected) {
    return absl::InvalidArgumentError(absl::StrCat("the payload has ", payload.size(), " bytes; ",
                                                   tokens, " tokens take ", expected));
  }
  const int64_t middle = part.scope.MiddleTokens(tokens);
  const int64_t prefix[] = {tokens, capacity, middle, 0};
  const char* const names[] = {"tokens", "capacity", "middle tokens", "reserved word"};
  for (int i = 0; i < 4; ++i) {
    const uint32_t found = Load<uint32_t>(payload, i * 4);
    if (found != prefix[i]) {
      return absl::InvalidArgumentError(
          absl::StrCat("the payload's ", names[i], " is ", found, ", not ", prefix[i]));
    }
  }
  const int64_t exact_values = (tokens - middle) * part.geometry.kv_heads * part.geometry.head_dim;
  std::vector<uint16_t> row(part.geometry.head_dim);
  for (int64_t i = 0; i < exact_values; i += part.geometry.head_dim) {
    std::memcpy(row.data(), payload.data() + kSequencePrefixBytes + i * 2, row.size() * 2);
    if (!AllEncodable(dtype, row.data(), part.geometry.head_dim)) {
      return absl::InvalidArgumentError(absl::StrCat("exact value ", i, " or one of the ",
                                                     part.geometry.head_dim - 1,
                                                     " behind it is not finite or beyond 1e30"));
    }
  }
  Checker prefix_checker(payload, 0);
  int64_t start = part.HeadsOffset(tokens);
  if (absl::Status s = prefix_checker.Padding(kSequencePrefixBytes + exact_values * 2); !s.ok()) {
    return s;
  }
  for (int h = 0; middle > 0 && h < part.geometry.kv_heads; ++h) {
    const SequencePart::HeadOffsets at = part.Place(h, start, middle);
    const auto f = static_cast<int64_t>(part.heads[h].spectral.size());
    const auto r = static_cast<int64_t>(part.heads[h].resident.size());
    Checker head(payload, h);
    absl::Status s;
    if (part.scope.peak_rescale) {
      for (int64_t j = 0; s.ok() && j < f; ++j) {
        const float gain = Load<float>(payload, at.gain + j * 4);
        if (!(gain >= 0 && gain <= kLargestGain)) {
          s = absl::InvalidArgumentError(
              absl::StrCat("head ", h, ": gain ", j, " is ", gain, "; it must be from 0 to 2^40"));
        }
      }
      if (s.ok()) s = head.Values<float>("shift", at.gain + f * 4, f, -kLargest, kLargest);
    }
    const float c = kLargestCoefficient;
    if (s.ok()) {
      s = part.heads[h].coefficient_bits == 16
              ? head.Values<uint16_t>("coefficient", at.coefficients, f * part.scope.states(), -c,
                                      c)
              : head.Values<float>("coefficient", at.coefficients, f * part.scope.states(), -c, c);
    }
    if (s.ok())
      s = head.Values<uint16_t>("resident", at.residents, r * middle, -kLargest, kLargest);
    if (!s.ok()) return s;
    start = at.end;
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
