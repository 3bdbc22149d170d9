#include "compute/codec/rotation.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr float kOrthogonalTolerance = 1e-3f;
constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::array<int8_t, 256> MakeSextets() {
  std::array<int8_t, 256> sextets;
  sextets.fill(-1);
  for (int8_t i = 0; i < 64; ++i) sextets[static_cast<uint8_t>(kAlphabet[i])] = i;
  return sextets;
}

template <typename T>
std::vector<int16_t> Quantize(std::span<const T> u) {
  std::vector<int16_t> rotation;
  rotation.reserve(u.size());
  for (T value : u) {
    rotation.push_back(static_cast<int16_t>(std::lround(std::clamp<T>(value, -1, 1) * 32767)));
  }
  return rotation;
}

}  // namespace

std::vector<int16_t> QuantizeRotation(std::span<const double> u) { return Quantize(u); }
std::vector<int16_t> QuantizeRotation(std::span<const float> u) { return Quantize(u); }

absl::Status CheckRotation(std::span<const int16_t> rotation, int head_dim) {
  const auto n = static_cast<size_t>(head_dim);
  if (rotation.size() != n * n) {
    return absl::InvalidArgumentError(absl::StrCat("rotation has ", rotation.size(),
                                                   " entries; it must have head_dim^2 = ", n * n));
  }
  // Row i of the upper half of U^T U gathers U[d][i] * U[d][i..] over d.
  std::vector<float> product(n * n);
  std::vector<float> row(n);
  for (size_t d = 0; d < n; ++d) {
    for (size_t j = 0; j < n; ++j) row[j] = RotationEntry(rotation[d * n + j]);
    for (size_t i = 0; i < n; ++i) {
      const float factor = row[i];
      float* const sums = product.data() + i * n;
      for (size_t j = i; j < n; ++j) sums[j] += factor * row[j];
    }
  }
  double squares = 0;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = i; j < n; ++j) {
      const float difference = product[i * n + j] - (i == j ? 1.0f : 0.0f);
      if (std::fabs(difference) > kOrthogonalTolerance) {
        return absl::InvalidArgumentError(absl::StrCat("rotation is not orthogonal: columns ", i,
                                                       " and ", j, " have the inner product ",
                                                       product[i * n + j]));
      }
      squares += (i == j ? 1.0 : 2.0) * difference * difference;
    }
  }
  if (squares > kOrthogonalTolerance * kOrthogonalTolerance * static_cast<double>(n)) {
    return absl::InvalidArgumentError(absl::StrCat("rotation is not orthogonal: |U^T U - I| is ",
                                                   std::sqrt(squares / static_cast<double>(n)),
                                                   " times |I|"));
  }
  return absl::OkStatus();
}

std::string RotationToBase64(std::span<const int16_t> rotation) {
  std::string text;
  text.reserve(RotationBase64Size(rotation.size()));
  const size_t bytes = rotation.size() * 2;
  const auto byte = [&](size_t i) -> uint32_t {
    return i < bytes ? static_cast<uint16_t>(rotation[i / 2]) >> (8 * (i % 2)) & 0xff : 0;
  };
  for (size_t i = 0; i < bytes; i += 3) {
    const uint32_t three = byte(i) << 16 | byte(i + 1) << 8 | byte(i + 2);
    for (size_t k = 0; k < 4; ++k) {
      text.push_back(i + k <= bytes ? kAlphabet[three >> (18 - 6 * k) & 63] : '=');
    }
  }
  return text;
}

absl::StatusOr<std::vector<int16_t>> RotationFromBase64(absl::string_view text) {
  static const std::array<int8_t, 256> kSextets = MakeSextets();
  if (text.size() % 4 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("base64 of ", text.size(), " characters; it must be a multiple of 4"));
  }
  size_t digits = text.size();
  while (digits > 0 && text.size() - digits < 2 && text[digits - 1] == '=') --digits;
  const size_t bytes = digits * 3 / 4;
  if (bytes % 2 != 0) return absl::InvalidArgumentError("base64 ends within a 16-bit value");
  std::vector<int16_t> values(bytes / 2);
  uint32_t bits = 0;
  int count = 0;  // of bits not yet used
  size_t at = 0;
  for (size_t i = 0; i < digits; ++i) {
    const int sextet = kSextets[static_cast<uint8_t>(text[i])];
    if (sextet < 0) {
      return absl::InvalidArgumentError(absl::StrCat("character ", i, " is not base64"));
    }
    bits = bits << 6 | static_cast<uint32_t>(sextet);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    const uint32_t byte = bits >> count & 0xff;
    values[at / 2] =
        static_cast<int16_t>(static_cast<uint16_t>(values[at / 2]) | byte << (8 * (at % 2)));
    ++at;
  }
  if ((bits & ((1u << count) - 1)) != 0) {
    return absl::InvalidArgumentError("base64 ends with bits that belong to no byte");
  }
  return values;
}

}  // namespace fourierkv
