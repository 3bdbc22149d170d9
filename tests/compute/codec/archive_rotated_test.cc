// Archived values that stay in the rotated channels of the compact form, to be encoded there.

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "compute/base/bfloat16.h"
#include "compute/codec/archive_codec.h"
#include "compute/codec/reference_archive.h"
#include "compute/codec/reference_codec.h"
#include "compute/codec/segment_layout.h"
#include "tests/compute/codec/random_archive.h"

namespace fourierkv {
namespace {

constexpr int64_t kFirst = 1024;

class ArchiveRotatedTest : public testing::Test {
 protected:
  // Compact V rotated in every head, and shared by the archive in head 0 of every layer.
  CodecProfile SharingProfile() {
    CodecProfile profile = RandomArchivingProfile(rng_);
    const KvGeometry& g = profile.geometry;
    for (size_t i = 1; i < profile.heads.size(); i += 2) {
      profile.heads[i].rotation = RandomRotation(rng_, g.head_dim);
      ArchiveHead& head = profile.archive->heads[i];
      if (i / 2 % g.kv_heads == 0) {
        head.rotation.clear();
        head.scale.clear();
      } else {
        head.rotation = RandomRotation(rng_, g.head_dim);
      }
    }
    EXPECT_TRUE(profile.Validate().ok()) << profile.Validate();
    return profile;
  }
  ArchivedPart Archive(const ProfileLayout& layout, Part part) {
    const KvGeometry& g = layout.profile().geometry;
    const auto dense =
        RandomDense(rng_, KvDtype::kBf16, g.kv_heads, layout.profile().segment_tokens, g.head_dim);
    auto archived = layout.archive()->Encode(0, part, KvDtype::kBf16, kFirst, dense);
    EXPECT_TRUE(archived.ok()) << archived.status();
    return *std::move(archived);
  }
  // What the archive means, in float64.
  std::vector<double> Exact(const ProfileLayout& layout, Part part, const ArchivedPart& archived) {
    const auto symbols = layout.archive()->DecodeSymbols(0, part, archived.payload);
    EXPECT_TRUE(symbols.ok()) << symbols.status();
    return reference::ArchiveInverse(layout.profile(), 0, part, kFirst, *symbols);
  }
  static std::vector<uint16_t> Decode(const ProfileLayout& layout, Part part, bool rotated,
                                      const ArchivedPart& archived) {
    const KvGeometry& g = layout.profile().geometry;
    std::vector<uint16_t> values(g.PartBytes(layout.profile().segment_tokens) / kKvDtypeBytes);
    const ArchiveCodec& codec = *layout.archive();
    const absl::Status status =
        rotated
            ? codec.DecodeRotated(0, part, kFirst, archived.payload, std::span(values))
            : codec.Decode(0, part, KvDtype::kBf16, kFirst, archived.payload, std::span(values));
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }
  // What the compact form of `values` means, which are as `from` wants them.
  static std::vector<double> ThroughCompact(const PartLayout& from, const PartLayout& to,
                                            const std::vector<uint16_t>& values) {
    std::vector<std::byte> payload(from.payload_bytes);
    reference::EncodePart(from, KvDtype::kBf16, values, payload);
    return reference::DecodePart(to, payload);
  }
  static double Distance(const std::vector<double>& a, const std::vector<double>& b) {
    double error = 0, energy = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += (a[i] - b[i]) * (a[i] - b[i]);
      energy += b[i] * b[i];
    }
    return std::sqrt(error / energy);
  }

  const uint64_t seed_ = std::random_device()();
  testing::ScopedTrace trace_{__FILE__, __LINE__, testing::Message() << "seed " << seed_};
  std::mt19937_64 rng_{seed_};
};

TEST_F(ArchiveRotatedTest, SharedHeadsStayRotatedAndOthersAreDecoded) {
  for (int round = 0; round < 6; ++round) {
    const ProfileLayout layout(SharingProfile());
    const int n = layout.profile().geometry.head_dim;
    const ArchivedPart archived = Archive(layout, Part::kV);
    const std::vector<double> exact = Exact(layout, Part::kV, archived);
    const auto rotated = Decode(layout, Part::kV, true, archived);
    const auto decoded = Decode(layout, Part::kV, false, archived);
    const std::vector<int16_t>& u = layout.profile().head(0, 0, Part::kV).rotation;
    const size_t head = exact.size() / layout.profile().geometry.kv_heads;
    for (size_t at = 0; at < head; at += n) {
      for (int j = 0; j < n; ++j) {
        double expected = 0, magnitude = 0;
        for (int d = 0; d < n; ++d) {
          expected += exact[at + d] * u[d * n + j] / 32767.0;
          magnitude += std::fabs(exact[at + d]);
        }
        // Rounding to bf16, and that of a rotation of 16 bits.
        ASSERT_NEAR(Bf16ToFloat(rotated[at + j]), expected,
                    std::fabs(expected) / 256 + 5e-4 * magnitude);
      }
    }
    EXPECT_TRUE(std::equal(decoded.begin() + head, decoded.end(), rotated.begin() + head));
    const ArchivedPart k = Archive(layout, Part::kK);
    EXPECT_EQ(Decode(layout, Part::kK, true, k), Decode(layout, Part::kK, false, k));
  }
}

TEST_F(ArchiveRotatedTest, RotatedPartsAreThePartsWithoutWhatIsShared) {
  const ProfileLayout layout(SharingProfile());
  const PartLayout& part = layout.part(0, Part::kV);
  const PartLayout* const rotated = layout.rotated_part(0, Part::kV);
  ASSERT_NE(rotated, nullptr);
  EXPECT_EQ(rotated->payload_bytes, part.payload_bytes);
  for (int h = 0; h < part.kv_heads; ++h) {
    EXPECT_EQ(rotated->heads[h].offset, part.heads[h].offset);
    EXPECT_EQ(rotated->heads[h].rotation == nullptr, h == 0);
    EXPECT_NE(part.heads[h].rotation, nullptr);
  }
  EXPECT_EQ(layout.rotated_part(0, Part::kK), nullptr);
}

TEST_F(ArchiveRotatedTest, NothingIsSharedWithScalesOrOtherRotationsOrWithoutAny) {
  CodecProfile profile = SharingProfile();
  for (size_t i = 1; i < profile.heads.size(); i += 2) {
    ArchiveHead& head = profile.archive->heads[i];
    switch (RandomInt(rng_, 0, 2)) {
      case 0:
        head.scale.assign(profile.geometry.head_dim, FloatToBf16(1.0f));
        break;
      case 1:
        head.rotation = RandomRotation(rng_, profile.geometry.head_dim);
        break;
      case 2:
        profile.heads[i].rotation.clear();
    }
  }
  EXPECT_EQ(ProfileLayout(profile).rotated_part(0, Part::kV), nullptr);
  profile.archive.reset();
  EXPECT_EQ(ProfileLayout(profile).rotated_part(0, Part::kV), nullptr);
}

TEST_F(ArchiveRotatedTest, CompactIsAsGoodAsByWayOfDenseValues) {
  for (int round = 0; round < 12; ++round) {
    CodecProfile profile = SharingProfile();
    if (round % 2 == 0) {  // nothing but rounding on either way
      for (HeadProfile& head : profile.heads) {
        Band all{.coefficients = 0, .bits = 16, .channels = {}};
        for (int d = 0; d < profile.geometry.head_dim; ++d) {
          all.channels.push_back(static_cast<uint16_t>(d));
        }
        head.bands = {all};
      }
    }
    const ProfileLayout layout(profile);
    const PartLayout& part = layout.part(0, Part::kV);
    const ArchivedPart archived = Archive(layout, Part::kV);
    const std::vector<double> exact = Exact(layout, Part::kV, archived);
    const auto direct = ThroughCompact(*layout.rotated_part(0, Part::kV), part,
                                       Decode(layout, Part::kV, true, archived));
    const auto detour = ThroughCompact(part, part, Decode(layout, Part::kV, false, archived));
    const double direct_error = Distance(direct, exact);
    const double detour_error = Distance(detour, exact);
    EXPECT_NEAR(direct_error, detour_error, 2e-3 + 0.02 * detour_error);
    if (round % 2 == 0) {
      EXPECT_LT(direct_error, 4e-3);
      EXPECT_LT(Distance(direct, detour), 8e-3);
    }
  }
}

TEST_F(ArchiveRotatedTest, FaultsAreThoseOfDecode) {
  const ProfileLayout layout(SharingProfile());
  const ArchivedPart archived = Archive(layout, Part::kV);
  std::vector<uint16_t> values = Decode(layout, Part::kV, true, archived);
  const auto bytes = std::span<const std::byte>(archived.payload);
  EXPECT_EQ(
      layout.archive()
          ->DecodeRotated(0, Part::kV, kFirst, bytes.first(bytes.size() - 1), std::span(values))
          .code(),
      absl::StatusCode::kDataLoss);
  values.pop_back();
  EXPECT_EQ(layout.archive()->DecodeRotated(0, Part::kV, kFirst, bytes, std::span(values)).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fourierkv
