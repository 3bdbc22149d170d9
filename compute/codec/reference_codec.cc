#include "compute/codec/reference_codec.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "compute/base/bfloat16.h"

namespace fourierkv::reference {
namespace {

// Directed rounding in two steps is exact: every bf16 is a float.
uint16_t DoubleToBf16Up(double value) {
  float nearest = static_cast<float>(value);
  if (nearest < value) nearest = std::nextafter(nearest, std::numeric_limits<float>::infinity());
  return FloatToBf16Up(nearest);
}

uint16_t DoubleToBf16Down(double value) {
  float nearest = static_cast<float>(value);
  if (nearest > value) nearest = std::nextafter(nearest, -std::numeric_limits<float>::infinity());
  return FloatToBf16Down(nearest);
}

// Rounds half to even, as the default floating-point environment does.
int Quantize(double value, int low, int high) {
  return static_cast<int>(std::clamp<double>(std::nearbyint(value), low, high));
}

void StoreU16(std::span<std::byte> payload, int64_t at, uint16_t value) {
  payload[at] = static_cast<std::byte>(value);
  payload[at + 1] = static_cast<std::byte>(value >> 8);
}

uint16_t LoadU16(std::span<const std::byte> payload, int64_t at) {
  return static_cast<uint16_t>(std::to_integer<unsigned>(payload[at]) |
                               std::to_integer<unsigned>(payload[at + 1]) << 8);
}

double LoadBf16(std::span<const std::byte> payload, int64_t at) {
  return Bf16ToFloat(LoadU16(payload, at));
}

// The byte and the shift at which a resident 4-bit band keeps token t of its channel j.
struct Nibble {
  int64_t at;
  int shift;
};

Nibble NibbleOf(const BandLayout& band, int segment_tokens, int j, int t) {
  const int words = segment_tokens / 8;
  const int k = t / words;
  const int i = t % words;
  return {band.data_offset + 4 * (static_cast<int64_t>(j) * words + i) + k / 2, 4 * (k % 2)};
}

// The layout's basis in float64: column m at [m * S].
std::vector<double> BasisMatrix(const PartLayout& layout) {
  const int s = layout.segment_tokens;
  std::vector<double> matrix;
  for (int m = 0; m < layout.basis->columns(); ++m) {
    for (int t = 0; t < s; ++t) matrix.push_back(BasisValue(layout.basis->kind(), s, m, t));
  }
  return matrix;
}

void EncodeSpectral(const BandLayout& band, int j, std::span<const double> x,
                    std::span<const double> basis, std::span<std::byte> payload) {
  std::vector<double> c(band.coefficients);
  double largest = 0;
  for (int m = 0; m < band.coefficients; ++m) {
    for (size_t t = 0; t < x.size(); ++t) c[m] += basis[m * x.size() + t] * x[t];
    largest = std::max(largest, std::abs(c[m]));
  }
  const uint16_t scale_bits = DoubleToBf16Up(largest / 127);
  const double scale = Bf16ToFloat(scale_bits);
  StoreU16(payload, band.scale_offset + 2 * j, scale_bits);
  for (int m = 0; m < band.coefficients; ++m) {
    const int q = scale > 0 ? Quantize(c[m] / scale, -127, 127) : 0;
    payload[band.data_offset + static_cast<int64_t>(m) * band.size + j] =
        static_cast<std::byte>(static_cast<int8_t>(q));
  }
}

void EncodeResident(const BandLayout& band, int j, std::span<const double> x,
                    std::span<std::byte> payload) {
  const int s = static_cast<int>(x.size());
  if (band.bits == 16) {
    for (int t = 0; t < s; ++t) {
      StoreU16(payload, band.data_offset + 2 * (static_cast<int64_t>(j) * s + t),
               FloatToBf16(static_cast<float>(x[t])));
    }
    return;
  }
  const int levels = (1 << band.bits) - 1;
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  const uint16_t offset_bits = DoubleToBf16Down(*low);
  const double offset = Bf16ToFloat(offset_bits);
  const uint16_t scale_bits = DoubleToBf16Up((*high - offset) / levels);
  const double scale = Bf16ToFloat(scale_bits);
  StoreU16(payload, band.scale_offset + 2 * j, scale_bits);
  StoreU16(payload, band.zero_offset + 2 * j, offset_bits);
  for (int t = 0; t < s; ++t) {
    const int q = scale > 0 ? Quantize((x[t] - offset) / scale, 0, levels) : 0;
    if (band.bits == 8) {
      payload[band.data_offset + static_cast<int64_t>(j) * s + t] = static_cast<std::byte>(q);
    } else {
      const Nibble nibble = NibbleOf(band, s, j, t);
      payload[nibble.at] |= static_cast<std::byte>(q << nibble.shift);
    }
  }
}

double DecodeSpectral(const BandLayout& band, int j, int t, int segment_tokens,
                      std::span<const double> basis, std::span<const std::byte> payload) {
  double value = 0;
  for (int m = 0; m < band.coefficients; ++m) {
    const auto q = std::to_integer<int8_t>(
        payload[band.data_offset + static_cast<int64_t>(m) * band.size + j]);
    value += basis[static_cast<size_t>(m) * segment_tokens + t] * q;
  }
  return value * LoadBf16(payload, band.scale_offset + 2 * j);
}

double DecodeResident(const BandLayout& band, int j, int t, int segment_tokens,
                      std::span<const std::byte> payload) {
  const int64_t index = static_cast<int64_t>(j) * segment_tokens + t;
  if (band.bits == 16) return LoadBf16(payload, band.data_offset + 2 * index);
  int q;
  if (band.bits == 8) {
    q = std::to_integer<int>(payload[band.data_offset + index]);
  } else {
    const Nibble nibble = NibbleOf(band, segment_tokens, j, t);
    q = std::to_integer<int>(payload[nibble.at] >> nibble.shift) & 15;
  }
  return LoadBf16(payload, band.zero_offset + 2 * j) +
         LoadBf16(payload, band.scale_offset + 2 * j) * q;
}

}  // namespace

double EncodePart(const PartLayout& layout, KvDtype dtype, std::span<const uint16_t> dense,
                  std::span<std::byte> payload) {
  const int s = layout.segment_tokens;
  const std::vector<double> basis = BasisMatrix(layout);
  std::fill(payload.begin(), payload.end(), std::byte{0});
  std::vector<double> x(s);
  for (int h = 0; h < layout.kv_heads; ++h) {
    for (const BandLayout& band : layout.heads[h].bands) {
      for (int j = 0; j < band.size; ++j) {
        for (int t = 0; t < s; ++t) {
          const size_t row = static_cast<size_t>(h) * s + t;
          x[t] = KvToFloat(dense[row * layout.head_dim + band.channels[j]], dtype);
        }
        if (band.spectral()) {
          EncodeSpectral(band, j, x, basis, payload);
        } else {
          EncodeResident(band, j, x, payload);
        }
      }
    }
  }
  const std::vector<double> decoded = DecodePart(layout, payload);
  double error = 0;
  double energy = 0;
  for (size_t i = 0; i < decoded.size(); ++i) {
    const double value = KvToFloat(dense[i], dtype);
    error += (value - decoded[i]) * (value - decoded[i]);
    energy += value * value;
  }
  return energy > 0 ? std::sqrt(error / energy) : 0;
}

std::vector<double> DecodePart(const PartLayout& layout, std::span<const std::byte> payload) {
  const int s = layout.segment_tokens;
  const std::vector<double> basis = BasisMatrix(layout);
  std::vector<double> dense(static_cast<size_t>(layout.kv_heads) * s * layout.head_dim);
  for (int h = 0; h < layout.kv_heads; ++h) {
    for (const BandLayout& band : layout.heads[h].bands) {
      for (int j = 0; j < band.size; ++j) {
        for (int t = 0; t < s; ++t) {
          const size_t row = static_cast<size_t>(h) * s + t;
          dense[row * layout.head_dim + band.channels[j]] =
              band.spectral() ? DecodeSpectral(band, j, t, s, basis, payload)
                              : DecodeResident(band, j, t, s, payload);
        }
      }
    }
  }
  return dense;
}

void Attend(std::span<const double> q, std::span<const double> k, std::span<const double> v,
            int queries, int64_t tokens, int head_dim, double scale, std::span<double> out,
            std::span<double> lse) {
  std::vector<double> weights(tokens);
  std::fill(out.begin(), out.end(), 0.0);
  for (int i = 0; i < queries; ++i) {
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t t = 0; t < tokens; ++t) {
      double score = 0;
      for (int d = 0; d < head_dim; ++d) score += q[i * head_dim + d] * k[t * head_dim + d];
      weights[t] = score * scale;
      largest = std::max(largest, weights[t]);
    }
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - largest);
    if (!lse.empty()) lse[i] = largest + std::log(sum);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int d = 0; d < head_dim; ++d) {
        out[i * head_dim + d] += weights[t] / sum * v[t * head_dim + d];
      }
    }
  }
}

}  // namespace fourierkv::reference
