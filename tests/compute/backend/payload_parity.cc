#include "tests/compute/backend/payload_parity.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "gtest/gtest.h"

namespace fourierkv {
namespace {

uint16_t U16At(const std::vector<std::byte>& payload, int64_t at) {
  return static_cast<uint16_t>(std::to_integer<int>(payload[at]) |
                               std::to_integer<int>(payload[at + 1]) << 8);
}

// The same layout of bytes without rotations: what payloads hold before they are turned back.
CodecProfile WithoutRotations(CodecProfile profile) {
  for (HeadProfile& head : profile.heads) head.rotation.clear();
  return profile;
}

// [kv_heads][S][head_dim], rotated as the layout says.
std::vector<double> Stored(const PartLayout& layout, KvDtype dtype,
                           const std::vector<uint16_t>& dense) {
  const int d = layout.head_dim;
  std::vector<double> stored(dense.size());
  for (size_t at = 0; at < dense.size(); at += d) {
    const float* u = layout.heads[at / d / layout.segment_tokens].rotation;
    for (int i = 0; i < d; ++i) {
      const double x = KvToFloat(dense[at + i], dtype);
      if (u == nullptr) {
        stored[at + i] = x;
      } else {
        for (int j = 0; j < d; ++j) stored[at + j] += x * u[i * d + j];
      }
    }
  }
  return stored;
}

class Comparison {
 public:
  Comparison(const ProfileLayout& layouts, Part part, KvDtype dtype,
             const std::vector<uint16_t>& dense, const std::vector<std::byte>& got,
             const std::vector<std::byte>& want)
      : plain_(WithoutRotations(layouts.profile())),
        layout_(layouts.part(0, part)),
        got_(got),
        want_(want),
        stored_(Stored(layout_, dtype, dense)),
        got_values_(reference::DecodePart(plain_.part(0, part), got)),
        want_values_(reference::DecodePart(plain_.part(0, part), want)) {}

  void Run() {
    for (int h = 0; h < layout_.kv_heads; ++h) {
      for (const BandLayout& band : layout_.heads[h].bands) {
        for (int j = 0; j < band.size; ++j) {
          SCOPED_TRACE(testing::Message() << "head " << h << ", bits " << band.bits << ", M "
                                          << band.coefficients << ", channel " << j);
          ++channels_;
          CheckChannel(h, band, j);
        }
      }
    }
    const bool exact_input = std::none_of(layout_.heads.begin(), layout_.heads.end(),
                                          [](const HeadLayout& h) { return h.rotation; });
    EXPECT_LE(other_grids_, 1 + channels_ / 20);
    EXPECT_LE(other_values_, 5 + values_ / (exact_input ? 1000 : 100));
  }

 private:
  double At(const std::vector<double>& values, int h, const BandLayout& band, int j, int t) const {
    return values[(static_cast<size_t>(h) * layout_.segment_tokens + t) * layout_.head_dim +
                  band.channels[j]];
  }

  double SquaredError(const std::vector<double>& values, int h, const BandLayout& band,
                      int j) const {
    double error = 0;
    for (int t = 0; t < layout_.segment_tokens; ++t) {
      const double difference = At(values, h, band, j, t) - At(stored_, h, band, j, t);
      error += difference * difference;
    }
    return error;
  }

  void CheckChannel(int h, const BandLayout& band, int j) {
    if (!band.scaled()) return CheckBf16(h, band, j);
    const bool same =
        U16At(got_, band.scale_offset + 2 * j) == U16At(want_, band.scale_offset + 2 * j) &&
        (!band.offset() ||
         U16At(got_, band.zero_offset + 2 * j) == U16At(want_, band.zero_offset + 2 * j));
    if (!same) {
      ++other_grids_;
      const double want = SquaredError(want_values_, h, band, j);
      EXPECT_NEAR(SquaredError(got_values_, h, band, j), want, 0.3 * want + 1e-9);
      return;
    }
    if (band.spectral()) return CheckCoefficients(band, j);
    const double scale = Bf16ToFloat(U16At(want_, band.scale_offset + 2 * j));
    for (int t = 0; t < layout_.segment_tokens; ++t) {
      const double difference =
          std::abs(At(got_values_, h, band, j, t) - At(want_values_, h, band, j, t));
      ASSERT_LE(difference, 1.001 * scale) << "token " << t;
      other_values_ += difference > 0;
    }
    values_ += layout_.segment_tokens;
  }

  void CheckCoefficients(const BandLayout& band, int j) {
    for (int m = 0; m < band.coefficients; ++m) {
      const int64_t at = band.data_offset + static_cast<int64_t>(m) * band.size + j;
      const int difference = std::to_integer<int8_t>(got_[at]) - std::to_integer<int8_t>(want_[at]);
      ASSERT_LE(std::abs(difference), 1) << "coefficient " << m;
      other_values_ += difference != 0;
    }
    values_ += band.coefficients;
  }

  void CheckBf16(int h, const BandLayout& band, int j) {
    const bool computed = band.spectral() || layout_.heads[h].rotation != nullptr;
    double largest = 0;
    for (int t = 0; t < layout_.segment_tokens; ++t) {
      largest = std::max(largest, std::abs(At(stored_, h, band, j, t)));
    }
    const int count = band.spectral() ? band.coefficients : layout_.segment_tokens;
    for (int i = 0; i < count; ++i) {
      const int64_t index = band.spectral() ? static_cast<int64_t>(i) * band.size + j
                                            : static_cast<int64_t>(j) * count + i;
      const uint16_t got = U16At(got_, band.data_offset + 2 * index);
      const uint16_t want = U16At(want_, band.data_offset + 2 * index);
      const double difference = std::abs(Bf16ToFloat(got) - Bf16ToFloat(want));
      if (difference <= (computed ? 1e-4 * largest : 0)) continue;
      ASSERT_TRUE(computed && UlpDistance(got, want) <= 1) << "value " << i;
      ++other_values_;
    }
    values_ += count;
  }

  const ProfileLayout plain_;
  const PartLayout& layout_;
  const std::vector<std::byte>& got_;
  const std::vector<std::byte>& want_;
  const std::vector<double> stored_, got_values_, want_values_;
  int64_t channels_ = 0, other_grids_ = 0, values_ = 0, other_values_ = 0;
};

}  // namespace

void ExpectSamePayload(const ProfileLayout& layouts, Part part, KvDtype dtype,
                       const std::vector<uint16_t>& dense, const std::vector<std::byte>& got,
                       const std::vector<std::byte>& want) {
  ASSERT_EQ(got.size(), want.size());
  Comparison(layouts, part, dtype, dense, got, want).Run();
}

int UlpDistance(uint16_t a, uint16_t b) {
  const auto ordered = [](uint16_t bits) { return bits & 0x8000 ? 0x8000 - bits : bits; };
  return std::abs(ordered(a) - ordered(b));
}

}  // namespace fourierkv
