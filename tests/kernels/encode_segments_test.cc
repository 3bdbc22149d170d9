// The GPU encoder against the float64 reference. Needs a GPU; says so and skips without one.

#include "kernels/encode_segments.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "compute/base/bfloat16.h"
#include "compute/codec/payload_check.h"
#include "compute/codec/quantiser_grid.h"
#include "compute/codec/reference_codec.h"
#include "gtest/gtest.h"
#include "kernels/quantiser_trims.h"
#include "tests/compute/backend/backend_test_util.h"
#include "tests/compute/backend/payload_parity.h"
#include "tests/compute/codec/random_codec_input.h"
#include "tests/kernels/device_codec.h"

namespace fourierkv {
namespace {

class EncodeSegments : public OnGpu {
 protected:
  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

int64_t HeadSize(const PartLayout& layout) {
  return static_cast<int64_t>(layout.segment_tokens) * layout.head_dim;
}

// Encodes `segments` segments and compares each with the reference.
void ExpectAgreement(const ProfileLayout& layouts, Part part, KvDtype dtype, int segments,
                     std::mt19937_64& random) {
  const PartLayout& layout = layouts.part(0, part);
  std::vector<std::vector<uint16_t>> dense;
  for (int s = 0; s < segments; ++s) {
    dense.push_back(
        RandomKv(layout.kv_heads, layout.segment_tokens, layout.head_dim, dtype, random));
  }
  const EncodedSegments got = EncodeOnDevice(layout, dtype, HeadSize(layout), dense);
  for (int s = 0; s < segments; ++s) {
    SCOPED_TRACE("segment " + std::to_string(s));
    std::vector<std::byte> want(layout.payload_bytes);
    const double want_error = reference::EncodePart(layout, dtype, dense[s], want);
    ExpectSamePayload(layouts, part, dtype, dense[s], got.payloads[s], want);
    const absl::Status valid = CheckPayload(layout, got.payloads[s]);  // padding is zero, too
    EXPECT_TRUE(valid.ok()) << valid;
    EXPECT_EQ(got.reports[s].refused, 0);
    EXPECT_NEAR(got.reports[s].relative_error, want_error, 1e-3);
  }
}

TEST_F(EncodeSegments, AgreesWithTheReference) {
  for (const CodecCase& test : CodecCases()) {
    SCOPED_TRACE(test.Name());
    const auto layouts = RandomLayout(test, random_);
    ExpectAgreement(*layouts, Part::kV, test.dtype, 2, random_);
    if (HasFatalFailure()) return;
  }
}

TEST_F(EncodeSegments, AgreesWithTheReferenceForAnyBandsOfAnyHead) {
  for (const int head_dim : {8, 72, 128, 184, 256, 512}) {
    for (const int segment_tokens : {128, 256, 512, 1024}) {
      if (head_dim == 512 && segment_tokens > 256) continue;  // the reference would take long
      CodecProfile profile;
      profile.name = "any bands";
      profile.geometry = {1, 3, head_dim};
      profile.basis = random_() % 2 == 0 ? BasisKind::kDct2 : BasisKind::kDft;
      profile.segment_tokens = segment_tokens;
      for (int h = 0; h < 6; ++h) {
        profile.heads.push_back(RandomHead(random_, profile.basis, head_dim));
      }
      const KvDtype dtype = random_() % 2 == 0 ? KvDtype::kBf16 : KvDtype::kFp16;
      SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << ", tokens " << segment_tokens
                                      << ", dtype " << static_cast<int>(dtype));
      ASSERT_TRUE(profile.Validate().ok()) << profile.Validate();
      ExpectAgreement(ProfileLayout(profile), Part::kK, dtype, 1, random_);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(EncodeSegments, WideHeadsOfLongSegmentsHaveManySlices) {
  for (const bool rotate : {false, true}) {
    const CodecCase test = {
        512, 1, 1024, BasisKind::kDct2, {64, 2}, {2, 3, 4, 8, 16}, KvDtype::kBf16, {7}, rotate};
    const auto layouts = RandomLayout(test, random_);
    ExpectAgreement(*layouts, Part::kK, test.dtype, 1, random_);
  }
}

TEST_F(EncodeSegments, ManySegmentsAreEncodedAsEachAlone) {
  const CodecCase test = {64, 3, 128, BasisKind::kDct2, {4}, {4, 3}, KvDtype::kBf16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  std::vector<std::vector<uint16_t>> few;
  for (int s = 0; s < 5; ++s) few.push_back(RandomKv(3, 128, 64, test.dtype, random_));
  std::vector<std::vector<uint16_t>> many;
  for (int s = 0; s < 1501; ++s) many.push_back(few[s % 5]);
  const EncodedSegments of_few = EncodeOnDevice(layout, test.dtype, 128 * 64, few);
  const EncodedSegments of_many = EncodeOnDevice(layout, test.dtype, 128 * 64, many);
  for (int s = 0; s < 1501; ++s) {
    ASSERT_EQ(of_many.payloads[s], of_few.payloads[s % 5]) << s;
    ASSERT_EQ(of_many.reports[s].relative_error, of_few.reports[s % 5].relative_error) << s;
  }
}

TEST_F(EncodeSegments, HeadsMayStandApart) {
  for (const bool rotate : {false, true}) {
    const CodecCase test = {64, 3, 128, BasisKind::kDct2, {4}, {4}, KvDtype::kBf16, {}, rotate};
    const auto layouts = RandomLayout(test, random_);
    const PartLayout& layout = layouts->part(0, Part::kK);
    const int64_t size = 128 * 64;
    const int64_t stride = size + 64 * 5;
    const auto adjacent = RandomKv(3, 128, 64, test.dtype, random_);
    std::vector<uint16_t> apart(3 * stride, 0x7fc0);  // NaN between heads must not matter
    for (int h = 0; h < 3; ++h) {
      std::copy_n(adjacent.begin() + h * size, size, apart.begin() + h * stride);
    }
    const EncodedSegments a = EncodeOnDevice(layout, test.dtype, size, {adjacent});
    const EncodedSegments b = EncodeOnDevice(layout, test.dtype, stride, {apart});
    EXPECT_EQ(a.payloads[0], b.payloads[0]);
    EXPECT_EQ(a.reports[0].relative_error, b.reports[0].relative_error);
    EXPECT_EQ(b.reports[0].refused, 0);
  }
}

TEST_F(EncodeSegments, ZerosHaveNoError) {
  for (const bool rotate : {false, true}) {
    const CodecCase test = {
        128, 1, 256, BasisKind::kDct2, {8}, {2, 3, 4, 8, 16}, KvDtype::kBf16, {}, rotate};
    const auto layouts = RandomLayout(test, random_);
    const PartLayout& layout = layouts->part(0, Part::kK);
    const EncodedSegments got =
        EncodeOnDevice(layout, test.dtype, HeadSize(layout), {std::vector<uint16_t>(256 * 128)});
    EXPECT_EQ(got.reports[0].relative_error, 0);
    EXPECT_EQ(got.reports[0].refused, 0);
    EXPECT_EQ(got.payloads[0], std::vector<std::byte>(layout.payload_bytes));
  }
}

TEST_F(EncodeSegments, MagnitudesNearTheLimitsAreMeasured) {
  for (const bool rotate : {false, true}) {
    for (const float magnitude : {1e-30f, 1e-22f, 1e-9f, 1e14f, 1e25f, 0.9e30f}) {
      SCOPED_TRACE(testing::Message() << magnitude << ", rotated " << rotate);
      const CodecCase test = {64, 1,     128, BasisKind::kDct2, {8}, {4, 8, 16}, KvDtype::kBf16,
                              {}, rotate};
      const auto layouts = RandomLayout(test, random_);
      const PartLayout& layout = layouts->part(0, Part::kK);
      auto dense = RandomKv(1, 128, 64, test.dtype, random_);
      float largest = 0;
      for (uint16_t x : dense) largest = std::max(largest, std::fabs(Bf16ToFloat(x)));
      for (uint16_t& x : dense) x = FloatToBf16(Bf16ToFloat(x) / largest * magnitude);
      std::vector<std::byte> want(layout.payload_bytes);
      const double want_error = reference::EncodePart(layout, test.dtype, dense, want);
      const EncodedSegments got = EncodeOnDevice(layout, test.dtype, 128 * 64, {dense});
      EXPECT_EQ(got.reports[0].refused, 0);
      EXPECT_NEAR(got.reports[0].relative_error, want_error, 1e-3);
    }
  }
}

TEST_F(EncodeSegments, ValuesThatAreNotFiniteAreRefusedByPlace) {
  for (const bool rotate : {false, true}) {
    const CodecCase test = {80, 2, 128, BasisKind::kDct2, {8}, {4, 16}, KvDtype::kBf16, {}, rotate};
    for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
      const auto layouts = RandomLayout(test, random_);
      const PartLayout& layout = layouts->part(0, Part::kK);
      std::vector<float> bad = {NAN, INFINITY, -INFINITY};
      if (dtype == KvDtype::kBf16) bad.push_back(1.1e30f);
      for (const float value : bad) {
        const int token = static_cast<int>(random_() % 128);
        const int channel = static_cast<int>(random_() % 80);
        SCOPED_TRACE(testing::Message() << value << " at token " << token << ", channel " << channel
                                        << ", rotated " << rotate);
        auto dense = RandomKv(2, 128, 80, dtype, random_);
        const auto good = dense;
        const int at = (128 + token) * 80 + channel;
        dense[at] = FloatToKv(value, dtype);
        dense[2 * 128 * 80 - 1] = FloatToKv(NAN, dtype);  // the last of all: never the first
        const EncodedSegments got = EncodeOnDevice(layout, dtype, 128 * 80, {good, dense, good});
        EXPECT_EQ(got.reports[0].refused, 0);
        EXPECT_EQ(got.reports[2].refused, 0);
        EXPECT_NE(got.reports[1].refused, 0);
        EXPECT_EQ(got.reports[1].head, 1);
        EXPECT_EQ(got.reports[1].token, token);
        EXPECT_EQ(got.reports[1].channel, channel);
      }
    }
  }
}

TEST(EncodeSegmentsGrids, TrimsAreTheReferences) {
  for (const int bits : {2, 3, 4, 8, 16}) {
    const auto trims = GridTrims(bits);
    ASSERT_EQ(kernels::GridTrimCount(bits), static_cast<int>(trims.size())) << bits;
    for (size_t i = 0; i < trims.size(); ++i) {
      EXPECT_EQ(kernels::GridTrim(bits, static_cast<int>(i)), trims[i]) << bits;
    }
  }
}

// Parameters that would be run; pointers are never followed by what refuses them.
kernels::EncodeSegmentsParams GoodParams() {
  static uint64_t memory[64];
  const auto address = (reinterpret_cast<uintptr_t>(memory) + 255) / 256 * 256;
  kernels::EncodeSegmentsParams params = {};
  params.part.kv_heads = 2;
  params.part.head_dim = 64;
  params.part.segment_tokens = 256;
  params.part.columns = 8;
  params.part.basis = reinterpret_cast<const float*>(address);
  params.part.bands = reinterpret_cast<const kernels::BandView*>(address);
  params.part.head_bands = reinterpret_cast<const int32_t*>(address);
  params.part.channels = reinterpret_cast<const uint16_t*>(address);
  params.dense = reinterpret_cast<const uint16_t* const*>(address);
  params.head_stride = 64 * 256;
  params.dtype = kernels::ElementType::kBf16;
  params.payloads = reinterpret_cast<uint8_t* const*>(address);
  params.payload_bytes = 4096;
  params.reports = reinterpret_cast<kernels::EncodeReport*>(address);
  params.workspace = reinterpret_cast<void*>(address);
  params.segments = 1;
  return params;
}

template <typename Change>
void ExpectRefused(const char* what, const Change& change) {
  kernels::EncodeSegmentsParams params = GoodParams();
  change(params);
  EXPECT_EQ(kernels::LaunchEncodeSegments(params, nullptr), cudaErrorInvalidValue) << what;
}

TEST(EncodeSegmentsMisuse, IsRefused) {
  using Params = kernels::EncodeSegmentsParams;
  ExpectRefused("kv_heads", [](Params& p) { p.part.kv_heads = 257; });
  ExpectRefused("kv_heads", [](Params& p) { p.part.kv_heads = 0; });
  ExpectRefused("head_dim", [](Params& p) { p.part.head_dim = 60; });
  ExpectRefused("head_dim", [](Params& p) { p.part.head_dim = 520; });
  ExpectRefused("segment_tokens", [](Params& p) { p.part.segment_tokens = 64; });
  ExpectRefused("segment_tokens", [](Params& p) { p.part.segment_tokens = 2048; });
  ExpectRefused("columns", [](Params& p) { p.part.columns = 65; });
  ExpectRefused("basis", [](Params& p) { p.part.basis = nullptr; });
  ExpectRefused("bands", [](Params& p) { p.part.bands = nullptr; });
  ExpectRefused("head_bands", [](Params& p) { p.part.head_bands = nullptr; });
  ExpectRefused("channels", [](Params& p) { p.part.channels = nullptr; });
  ExpectRefused("dense", [](Params& p) { p.dense = nullptr; });
  ExpectRefused("head_stride", [](Params& p) { p.head_stride -= 8; });
  ExpectRefused("head_stride", [](Params& p) { p.head_stride += 1; });
  ExpectRefused("dtype", [](Params& p) { p.dtype = static_cast<kernels::ElementType>(3); });
  ExpectRefused("payloads", [](Params& p) { p.payloads = nullptr; });
  ExpectRefused("payload_bytes", [](Params& p) { p.payload_bytes = 17; });
  ExpectRefused("reports", [](Params& p) { p.reports = nullptr; });
  ExpectRefused("workspace", [](Params& p) { p.workspace = nullptr; });
  ExpectRefused("workspace", [](Params& p) { p.workspace = static_cast<char*>(p.workspace) + 16; });
  ExpectRefused("segments", [](Params& p) { p.segments = 0; });
  ExpectRefused("segments", [](Params& p) { p.segments = 65536; });
}

}  // namespace
}  // namespace fourierkv
