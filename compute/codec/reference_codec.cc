#include "compute/codec/reference_codec.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "compute/base/bfloat16.h"
#include "compute/codec/quantiser_grid.h"

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

// Where `width` bits (1, 2 or 4) of token t of channel j stand in words at `offset`: every word of
// a channel holds one token out of each of 32 / width stretches of tokens.
struct BitPlace {
  int64_t at;
  int shift;
};

BitPlace PlaceOf(int64_t offset, int width, int segment_tokens, int j, int t) {
  const int words = segment_tokens * width / 32;
  const int bit = t / words * width;
  return {offset + 4 * (static_cast<int64_t>(j) * words + t % words) + bit / 8, bit % 8};
}

void StoreBits(std::span<std::byte> payload, BitPlace place, int value) {
  payload[place.at] |= static_cast<std::byte>(value << place.shift);
}

int LoadBits(std::span<const std::byte> payload, BitPlace place, int width) {
  return std::to_integer<int>(payload[place.at] >> place.shift) & ((1 << width) - 1);
}

// The integer of token t of a band's channel j.
void StoreCode(const BandLayout& band, int s, int j, int t, int code,
               std::span<std::byte> payload) {
  if (band.bits == 8) {
    payload[band.data_offset + static_cast<int64_t>(j) * s + t] = static_cast<std::byte>(code);
  } else if (band.bits == 3) {
    StoreBits(payload, PlaceOf(band.data_offset, 2, s, j, t), code & 3);
    StoreBits(payload, PlaceOf(band.high_offset, 1, s, j, t), code >> 2);
  } else {
    StoreBits(payload, PlaceOf(band.data_offset, band.bits, s, j, t), code);
  }
}

int LoadCode(const BandLayout& band, int s, int j, int t, std::span<const std::byte> payload) {
  if (band.bits == 8) {
    return std::to_integer<int>(payload[band.data_offset + static_cast<int64_t>(j) * s + t]);
  }
  if (band.bits == 3) {
    return LoadBits(payload, PlaceOf(band.data_offset, 2, s, j, t), 2) |
           LoadBits(payload, PlaceOf(band.high_offset, 1, s, j, t), 1) << 2;
  }
  return LoadBits(payload, PlaceOf(band.data_offset, band.bits, s, j, t), band.bits);
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
  if (!band.scaled()) {
    for (int m = 0; m < band.coefficients; ++m) {
      StoreU16(payload, band.data_offset + 2 * (static_cast<int64_t>(m) * band.size + j),
               FloatToBf16(static_cast<float>(c[m])));
    }
    return;
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

struct Grid {
  uint16_t offset_bits;
  uint16_t scale_bits;
  int levels;

  double offset() const { return Bf16ToFloat(offset_bits); }
  double scale() const { return Bf16ToFloat(scale_bits); }
  int Code(double x) const {
    return scale() > 0 ? Quantize((x - offset()) / scale(), 0, levels) : 0;
  }
  double Error(std::span<const double> values) const {
    double error = 0;
    for (double x : values) {
      const double difference = x - (offset() + scale() * Code(x));
      error += difference * difference;
    }
    return error;
  }
};

Grid ChooseGrid(int bits, std::span<const double> x) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  const double range = *high - *low;
  Grid best{};
  double least = std::numeric_limits<double>::infinity();
  for (double trim : GridTrims(bits)) {
    Grid grid;
    grid.levels = (1 << bits) - 1;
    grid.offset_bits = DoubleToBf16Down(*low + trim * range);
    grid.scale_bits = DoubleToBf16Up((*high - trim * range - grid.offset()) / grid.levels);
    const double error = grid.Error(x);
    if (error >= least) continue;
    least = error;
    best = grid;
  }
  return best;
}

void EncodeResident(const BandLayout& band, int j, std::span<const double> x,
                    std::span<std::byte> payload) {
  const int s = static_cast<int>(x.size());
  if (!band.scaled()) {
    for (int t = 0; t < s; ++t) {
      StoreU16(payload, band.data_offset + 2 * (static_cast<int64_t>(j) * s + t),
               FloatToBf16(static_cast<float>(x[t])));
    }
    return;
  }
  const Grid grid = ChooseGrid(band.bits, x);
  StoreU16(payload, band.scale_offset + 2 * j, grid.scale_bits);
  StoreU16(payload, band.zero_offset + 2 * j, grid.offset_bits);
  for (int t = 0; t < s; ++t) StoreCode(band, s, j, t, grid.Code(x[t]), payload);
}

double DecodeSpectral(const BandLayout& band, int j, int t, int segment_tokens,
                      std::span<const double> basis, std::span<const std::byte> payload) {
  double value = 0;
  for (int m = 0; m < band.coefficients; ++m) {
    const int64_t at = static_cast<int64_t>(m) * band.size + j;
    const double c = band.scaled() ? std::to_integer<int8_t>(payload[band.data_offset + at])
                                   : LoadBf16(payload, band.data_offset + 2 * at);
    value += basis[static_cast<size_t>(m) * segment_tokens + t] * c;
  }
  return band.scaled() ? value * LoadBf16(payload, band.scale_offset + 2 * j) : value;
}

double DecodeResident(const BandLayout& band, int j, int t, int segment_tokens,
                      std::span<const std::byte> payload) {
  const int64_t index = static_cast<int64_t>(j) * segment_tokens + t;
  if (!band.scaled()) return LoadBf16(payload, band.data_offset + 2 * index);
  return LoadBf16(payload, band.zero_offset + 2 * j) +
         LoadBf16(payload, band.scale_offset + 2 * j) *
             LoadCode(band, segment_tokens, j, t, payload);
}

// rows: [rows][D]. X U, or with `back` X U^T. Nothing happens to a head that is not rotated.
void Rotate(const HeadLayout& head, int d, bool back, std::span<double> rows) {
  if (head.rotation == nullptr) return;
  std::vector<double> row(d);
  for (size_t at = 0; at < rows.size(); at += d) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        const double u = head.rotation[static_cast<size_t>(i) * d + j];
        row[back ? i : j] += rows[at + (back ? j : i)] * u;
      }
    }
    std::copy(row.begin(), row.end(), rows.begin() + at);
  }
}

}  // namespace

double EncodePart(const PartLayout& layout, KvDtype dtype, std::span<const uint16_t> dense,
                  std::span<std::byte> payload) {
  const int s = layout.segment_tokens;
  const std::vector<double> basis = BasisMatrix(layout);
  std::fill(payload.begin(), payload.end(), std::byte{0});
  const int d = layout.head_dim;
  std::vector<double> rows(static_cast<size_t>(s) * d);
  std::vector<double> x(s);
  for (int h = 0; h < layout.kv_heads; ++h) {
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i] = KvToFloat(dense[h * rows.size() + i], dtype);
    }
    Rotate(layout.heads[h], d, /*back=*/false, rows);
    for (const BandLayout& band : layout.heads[h].bands) {
      for (int j = 0; j < band.size; ++j) {
        for (int t = 0; t < s; ++t) x[t] = rows[static_cast<size_t>(t) * d + band.channels[j]];
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
    const size_t size = static_cast<size_t>(s) * layout.head_dim;
    Rotate(layout.heads[h], layout.head_dim, /*back=*/true,
           std::span(dense).subspan(h * size, size));
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
