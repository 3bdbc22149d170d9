// The GPU decoder against the float64 reference. Needs a GPU; says so and skips without one.

#include "kernels/decode_segments.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "gtest/gtest.h"
#include "tests/compute/backend/backend_test_util.h"
#include "tests/compute/backend/payload_parity.h"
#include "tests/compute/codec/random_codec_input.h"
#include "tests/kernels/device_codec.h"

namespace fourierkv {
namespace {

class DecodeSegments : public OnGpu {
 protected:
  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

int64_t HeadSize(const PartLayout& layout) {
  return static_cast<int64_t>(layout.segment_tokens) * layout.head_dim;
}

std::vector<std::byte> RandomPayload(const PartLayout& layout, KvDtype dtype,
                                     std::mt19937_64& random) {
  std::vector<std::byte> payload(layout.payload_bytes);
  reference::EncodePart(
      layout, dtype,
      RandomKv(layout.kv_heads, layout.segment_tokens, layout.head_dim, dtype, random), payload);
  return payload;
}

// Decodes `segments` segments and compares each with the reference.
void ExpectAgreement(const PartLayout& layout, KvDtype dtype, int segments,
                     std::mt19937_64& random) {
  std::vector<std::vector<std::byte>> payloads;
  for (int s = 0; s < segments; ++s) payloads.push_back(RandomPayload(layout, dtype, random));
  const auto decoded = DecodeOnDevice(layout, dtype, HeadSize(layout), payloads);
  for (int s = 0; s < segments; ++s) {
    const std::vector<double> want = reference::DecodePart(layout, payloads[s]);
    int64_t different = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const uint16_t got = decoded[s][i];
      const bool rotated = layout.heads[i / HeadSize(layout)].rotation != nullptr;
      const uint16_t rounded = FloatToKv(static_cast<float>(want[i]), dtype);
      different += rounded != got && !rotated;
      const auto place = [&] {
        return testing::Message() << "segment " << s << ", head " << i / HeadSize(layout)
                                  << ", token " << i / layout.head_dim % layout.segment_tokens
                                  << ", channel " << i % layout.head_dim << " is "
                                  << KvToFloat(got, dtype) << ", not " << want[i];
      };
      // Near zero, cancellation makes the last places of a float sum meaningless.
      if (rotated) {
        ASSERT_NEAR(KvToFloat(got, dtype), want[i], 2e-4 + std::abs(want[i]) / 128) << place();
      } else if (std::abs(want[i]) > 1e-3) {
        ASSERT_LE(UlpDistance(rounded, got), 1) << place();
      } else {
        ASSERT_NEAR(KvToFloat(got, dtype), want[i], 1e-5) << place();
      }
    }
    EXPECT_LE(different, static_cast<int64_t>(want.size()) / 50);
  }
}

TEST_F(DecodeSegments, AgreesWithTheReference) {
  for (const CodecCase& test : CodecCases()) {
    SCOPED_TRACE(test.Name());
    const auto layouts = RandomLayout(test, random_);
    for (const Part part : kParts) {
      ExpectAgreement(layouts->part(0, part), test.dtype, 2, random_);
    }
    if (HasFatalFailure()) return;
  }
}

TEST_F(DecodeSegments, AgreesWithTheReferenceForAnyBandsOfAnyHead) {
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
      const ProfileLayout layouts(profile);
      ExpectAgreement(layouts.part(0, Part::kK), dtype, 1, random_);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(DecodeSegments, WideHeadsOfLongSegmentsHaveManySlices) {
  for (const bool rotate : {false, true}) {
    const CodecCase test = {
        512, 1, 1024, BasisKind::kDct2, {64, 2}, {2, 3, 4, 8, 16}, KvDtype::kBf16, {7}, rotate};
    const auto layouts = RandomLayout(test, random_);
    ExpectAgreement(layouts->part(0, Part::kK), test.dtype, 1, random_);
  }
}

TEST_F(DecodeSegments, ManySegmentsAreDecodedAsEachAlone) {
  const CodecCase test = {64, 3, 128, BasisKind::kDct2, {4}, {4, 3}, KvDtype::kBf16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  std::vector<std::vector<std::byte>> few;
  for (int s = 0; s < 5; ++s) few.push_back(RandomPayload(layout, test.dtype, random_));
  std::vector<std::vector<std::byte>> many;
  for (int s = 0; s < 1501; ++s) many.push_back(few[s % 5]);
  const auto of_few = DecodeOnDevice(layout, test.dtype, 128 * 64, few);
  const auto of_many = DecodeOnDevice(layout, test.dtype, 128 * 64, many);
  for (int s = 0; s < 1501; ++s) ASSERT_EQ(of_many[s], of_few[s % 5]) << s;
}

TEST_F(DecodeSegments, NothingIsWrittenBetweenHeads) {
  for (const bool rotate : {false, true}) {
    const CodecCase test = {64, 3, 128, BasisKind::kDct2, {4}, {4}, KvDtype::kBf16, {}, rotate};
    const auto layouts = RandomLayout(test, random_);
    const PartLayout& layout = layouts->part(0, Part::kK);
    const auto payload = RandomPayload(layout, test.dtype, random_);
    const int64_t size = 128 * 64;
    const int64_t stride = size + 64 * 5;
    const auto adjacent = DecodeOnDevice(layout, test.dtype, size, {payload}, 0x1111);
    const auto apart = DecodeOnDevice(layout, test.dtype, stride, {payload}, 0x1111);
    for (int h = 0; h < 3; ++h) {
      for (int64_t i = 0; i < stride; ++i) {
        const uint16_t want = i < size ? adjacent[0][h * size + i] : 0x1111;
        ASSERT_EQ(apart[0][h * stride + i], want) << "head " << h << ", element " << i;
      }
    }
  }
}

TEST_F(DecodeSegments, OverflowOfFp16GivesTheLargestFiniteValue) {
  for (const int coefficients : {0, 8}) {
    for (const bool rotate : {false, true}) {
      SCOPED_TRACE(testing::Message() << coefficients << ", rotated " << rotate);
      CodecCase test = {64, 1, 128, BasisKind::kDct2, {}, {16}, KvDtype::kFp16, {}, rotate};
      if (coefficients > 0) {
        test.coefficients = {coefficients};
        test.resident_bits = {};
      }
      const auto layouts = RandomLayout(test, random_);
      const PartLayout& layout = layouts->part(0, Part::kK);
      std::vector<std::byte> payload(layout.payload_bytes);
      reference::EncodePart(layout, KvDtype::kBf16,
                            std::vector<uint16_t>(128 * 64, FloatToBf16(-1e6f)), payload);
      const auto got = DecodeOnDevice(layout, KvDtype::kFp16, 128 * 64, {payload});
      for (const uint16_t x : got[0]) ASSERT_EQ(Fp16ToFloat(x), -65504.0f);
    }
  }
}

// Parameters that would be run; pointers are never followed by what refuses them.
kernels::DecodeSegmentsParams GoodParams() {
  static uint64_t memory[8];
  kernels::DecodeSegmentsParams params = {};
  params.part.kv_heads = 2;
  params.part.head_dim = 64;
  params.part.segment_tokens = 256;
  params.part.columns = 8;
  params.part.basis = reinterpret_cast<const float*>(memory);
  params.part.bands = reinterpret_cast<const kernels::BandView*>(memory);
  params.part.head_bands = reinterpret_cast<const int32_t*>(memory);
  params.part.channels = reinterpret_cast<const uint16_t*>(memory);
  params.payloads = reinterpret_cast<const uint8_t* const*>(memory);
  params.dense = reinterpret_cast<uint16_t* const*>(memory);
  params.head_stride = 64 * 256;
  params.dtype = kernels::ElementType::kBf16;
  params.segments = 1;
  return params;
}

template <typename Change>
void ExpectRefused(const char* what, const Change& change) {
  kernels::DecodeSegmentsParams params = GoodParams();
  change(params);
  EXPECT_EQ(kernels::LaunchDecodeSegments(params, nullptr), cudaErrorInvalidValue) << what;
}

TEST(DecodeSegmentsMisuse, IsRefused) {
  using Params = kernels::DecodeSegmentsParams;
  ExpectRefused("kv_heads", [](Params& p) { p.part.kv_heads = 257; });
  ExpectRefused("head_dim", [](Params& p) { p.part.head_dim = 60; });
  ExpectRefused("head_dim", [](Params& p) { p.part.head_dim = 520; });
  ExpectRefused("segment_tokens", [](Params& p) { p.part.segment_tokens = 384; });
  ExpectRefused("columns", [](Params& p) { p.part.columns = 0; });
  ExpectRefused("basis", [](Params& p) { p.part.basis = nullptr; });
  ExpectRefused("bands", [](Params& p) { p.part.bands = nullptr; });
  ExpectRefused("head_bands", [](Params& p) { p.part.head_bands = nullptr; });
  ExpectRefused("channels", [](Params& p) { p.part.channels = nullptr; });
  ExpectRefused("payloads", [](Params& p) { p.payloads = nullptr; });
  ExpectRefused("dense", [](Params& p) { p.dense = nullptr; });
  ExpectRefused("head_stride", [](Params& p) { p.head_stride -= 8; });
  ExpectRefused("head_stride", [](Params& p) { p.head_stride += 4; });
  ExpectRefused("dtype", [](Params& p) { p.dtype = static_cast<kernels::ElementType>(0); });
  ExpectRefused("segments", [](Params& p) { p.segments = -1; });
}

}  // namespace
}  // namespace fourierkv
