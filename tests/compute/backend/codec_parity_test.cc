// Encoding and decoding against the float64 reference.

#include <cmath>
#include <cstdlib>
#include <numeric>

#include "absl/strings/match.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/compute/backend/backend_test_util.h"
#include "tests/compute/backend/backend_under_test.h"
#include "tests/compute/backend/payload_parity.h"

namespace fourierkv {
namespace {

class CodecParity : public BackendTest {
 protected:
  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

TEST_F(CodecParity, EncodeAgreesWithTheReference) {
  for (const CodecCase& test : CodecCases()) {
    SCOPED_TRACE(test.Name());
    const auto layouts = RandomLayout(test, random_);
    const PartLayout& layout = layouts->part(0, Part::kV);
    const auto dense =
        RandomKv(test.kv_heads, test.segment_tokens, test.head_dim, test.dtype, random_);
    std::vector<std::byte> want(layout.payload_bytes);
    const double want_error = reference::EncodePart(layout, test.dtype, dense, want);
    ForEachTarget([&] {
      std::vector<std::byte> got(layout.payload_bytes, std::byte{0xa5});
      EncodeJob job{&layout, dense.data(),
                    static_cast<int64_t>(test.segment_tokens) * test.head_dim, got.data()};
      ASSERT_TRUE(backend_->Encode(test.dtype, {&job, 1}).ok());
      ExpectSamePayload(*layouts, Part::kV, test.dtype, dense, got, want);
      EXPECT_NEAR(job.relative_error, want_error, 1e-3);
    });
  }
}

TEST_F(CodecParity, PaddingIsZeroed) {
  const CodecCase test = {40, 1, 128, BasisKind::kDct2, {3}, {8}, KvDtype::kBf16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  const auto dense = RandomKv(1, 128, 40, test.dtype, random_);
  std::vector<std::byte> got(layout.payload_bytes, std::byte{0xff});
  std::vector<std::byte> want(layout.payload_bytes);
  EncodeJob job{&layout, dense.data(), 128 * 40, got.data()};
  ASSERT_TRUE(backend_->Encode(test.dtype, {&job, 1}).ok());
  const BandLayout& band = layout.heads[0].bands[0];
  for (int64_t i = band.data_offset + 3 * band.size; i < layout.heads[0].bands[1].scale_offset;
       ++i) {
    EXPECT_EQ(got[i], std::byte{0});
  }
}

TEST_F(CodecParity, DecodeAgreesWithTheReference) {
  for (const CodecCase& test : CodecCases()) {
    SCOPED_TRACE(test.Name());
    const auto layouts = RandomLayout(test, random_);
    const PartLayout& layout = layouts->part(0, Part::kK);
    const auto dense =
        RandomKv(test.kv_heads, test.segment_tokens, test.head_dim, test.dtype, random_);
    std::vector<std::byte> payload(layout.payload_bytes);
    reference::EncodePart(layout, test.dtype, dense, payload);
    const std::vector<double> want = reference::DecodePart(layout, payload);
    ForEachTarget([&] {
      std::vector<uint16_t> got(dense.size());
      const DecodeJob job{&layout, payload.data(), got.data(),
                          static_cast<int64_t>(test.segment_tokens) * test.head_dim};
      ASSERT_TRUE(backend_->Decode(test.dtype, {&job, 1}).ok());
      int64_t different = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const uint16_t rounded = FloatToKv(static_cast<float>(want[i]), test.dtype);
        different += rounded != got[i];
        // Near zero, cancellation makes the last places of a float sum meaningless; of a rotation's
        // those of all channels of the token, whose products are right to 2^-16.
        if (test.rotate_k) {
          const auto token = want.begin() + static_cast<int64_t>(i) / test.head_dim * test.head_dim;
          const double norm =
              std::sqrt(std::inner_product(token, token + test.head_dim, token, 0.0));
          ASSERT_NEAR(KvToFloat(got[i], test.dtype), want[i],
                      norm / 16384 + std::abs(want[i]) / 128)
              << i;
        } else if (std::abs(want[i]) > 1e-3) {
          ASSERT_LE(UlpDistance(rounded, got[i]), 1) << i;
        } else {
          ASSERT_NEAR(KvToFloat(got[i], test.dtype), want[i], 1e-5) << i;
        }
      }
      // Of fp16 there are more that lie between two values.
      EXPECT_LE(different, static_cast<int64_t>(want.size()) / (test.rotate_k ? 4 : 25));
    });
  }
}

TEST_F(CodecParity, HeadsMayStandApart) {
  const CodecCase test = {64, 3, 128, BasisKind::kDct2, {4}, {4}, KvDtype::kBf16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  const int64_t size = 128 * 64;
  const int64_t stride = size + 64 * 5;
  const auto adjacent = RandomKv(3, 128, 64, test.dtype, random_);
  std::vector<uint16_t> apart(3 * stride, 0x7fc0);  // NaN between heads must not matter
  for (int h = 0; h < 3; ++h) {
    std::copy_n(adjacent.begin() + h * size, size, apart.begin() + h * stride);
  }
  std::vector<std::byte> a(layout.payload_bytes), b(layout.payload_bytes);
  EncodeJob jobs[] = {{&layout, adjacent.data(), size, a.data()},
                      {&layout, apart.data(), stride, b.data()}};
  ASSERT_TRUE(backend_->Encode(test.dtype, jobs).ok());
  EXPECT_EQ(a, b);
  EXPECT_EQ(jobs[0].relative_error, jobs[1].relative_error);
  std::vector<uint16_t> decoded(3 * stride, 0x1234);
  const DecodeJob decode{&layout, a.data(), decoded.data(), stride};
  ASSERT_TRUE(backend_->Decode(test.dtype, {&decode, 1}).ok());
  EXPECT_EQ(decoded[size], 0x1234) << "between heads nothing is written";
}

TEST_F(CodecParity, ErrorOfExactlyRepresentableDataIsZero) {
  const CodecCase test = {128, 1, 256, BasisKind::kDct2, {8}, {4, 8, 16}, KvDtype::kBf16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  const std::vector<uint16_t> zeros(256 * 128);
  std::vector<std::byte> payload(layout.payload_bytes);
  EncodeJob job{&layout, zeros.data(), 256 * 128, payload.data(), 1.0f};
  ASSERT_TRUE(backend_->Encode(test.dtype, {&job, 1}).ok());
  EXPECT_EQ(job.relative_error, 0);
}

TEST_F(CodecParity, MagnitudesNearTheLimitsAreMeasured) {
  for (const float magnitude : {1e-30f, 1e-22f, 1e25f, 0.9e30f}) {
    SCOPED_TRACE(magnitude);
    const CodecCase test = {64, 1, 128, BasisKind::kDct2, {8}, {4, 8, 16}, KvDtype::kBf16};
    const auto layouts = RandomLayout(test, random_);
    const PartLayout& layout = layouts->part(0, Part::kK);
    auto dense = RandomKv(1, 128, 64, test.dtype, random_);
    float largest = 0;
    for (uint16_t x : dense) largest = std::max(largest, std::fabs(Bf16ToFloat(x)));
    for (uint16_t& x : dense) x = FloatToBf16(Bf16ToFloat(x) / largest * magnitude);
    std::vector<std::byte> want(layout.payload_bytes), got(layout.payload_bytes);
    const double want_error = reference::EncodePart(layout, test.dtype, dense, want);
    ForEachTarget([&] {
      EncodeJob job{&layout, dense.data(), 128 * 64, got.data()};
      ASSERT_TRUE(backend_->Encode(test.dtype, {&job, 1}).ok());
      EXPECT_NEAR(job.relative_error, want_error, 1e-3);
    });
  }
}

TEST_F(CodecParity, ValuesThatAreNotFiniteAreRefusedByPlace) {
  const CodecCase test = {80, 2, 128, BasisKind::kDct2, {8}, {4}, KvDtype::kBf16};
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    const auto layouts = RandomLayout(test, random_);
    const PartLayout& layout = layouts->part(0, Part::kK);
    std::vector<float> bad = {NAN, INFINITY, -INFINITY};
    if (dtype == KvDtype::kBf16) bad.push_back(1.1e30f);
    for (const float value : bad) {
      for (const int channel : {0, 5, 79}) {
        const int token = static_cast<int>(random_() % 128);
        auto dense = RandomKv(2, 128, 80, dtype, random_);
        dense[(128 + token) * 80 + channel] = FloatToKv(value, dtype);
        std::vector<std::byte> payload(layout.payload_bytes);
        ForEachTarget([&] {
          EncodeJob job{&layout, dense.data(), 128 * 80, payload.data()};
          const absl::Status status = backend_->Encode(dtype, {&job, 1});
          EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
          EXPECT_THAT(std::string(status.message()),
                      testing::HasSubstr("head 1, token " + std::to_string(token) +
                                         " of the segment, channel " + std::to_string(channel)));
        });
      }
    }
  }
}

TEST_F(CodecParity, Fp16OverflowDecodesToTheLargestFiniteValue) {
  const CodecCase test = {64, 1, 128, BasisKind::kDct2, {}, {16}, KvDtype::kFp16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  std::vector<uint16_t> dense(128 * 64, FloatToBf16(-1e6f));
  std::vector<std::byte> payload(layout.payload_bytes);
  EncodeJob job{&layout, dense.data(), 128 * 64, payload.data()};
  ASSERT_TRUE(backend_->Encode(KvDtype::kBf16, {&job, 1}).ok());
  ForEachTarget([&] {
    const DecodeJob decode{&layout, payload.data(), dense.data(), 128 * 64};
    ASSERT_TRUE(backend_->Decode(KvDtype::kFp16, {&decode, 1}).ok());
    EXPECT_EQ(Fp16ToFloat(dense[77]), -65504.0f);
  });
}

TEST_F(CodecParity, PayloadsDoNotDependOnThreads) {
  const CodecCase test = {96, 5, 256, BasisKind::kDct2, {8}, {4}, KvDtype::kBf16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  const auto dense = RandomKv(5, 256, 96, test.dtype, random_);
  std::vector<std::vector<std::byte>> payloads;
  for (int threads : {1, 2, 3}) {
    payloads.emplace_back(layout.payload_bytes);
    EncodeJob job{&layout, dense.data(), 256 * 96, payloads.back().data()};
    ASSERT_TRUE(CreateBackendUnderTest(threads)->Encode(test.dtype, {&job, 1}).ok());
  }
  EXPECT_EQ(payloads[0], payloads[1]);
  EXPECT_EQ(payloads[0], payloads[2]);
}

TEST_F(CodecParity, JobsOfManyLayoutsAreTheSameInOneCall) {
  std::vector<std::unique_ptr<ProfileLayout>> layouts;
  std::vector<std::vector<uint16_t>> dense;
  std::vector<std::vector<std::byte>> alone, together;
  std::vector<EncodeJob> jobs;
  std::vector<float> errors;
  for (const CodecCase& test : CodecCases()) {
    if (test.dtype != KvDtype::kBf16) continue;
    layouts.push_back(RandomLayout(test, random_));
  }
  constexpr int kRounds = 3;  // so that jobs of one layout are not beside each other
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& layout : layouts) {
      const PartLayout& part = layout->part(0, round % 2 == 0 ? Part::kK : Part::kV);
      dense.push_back(
          RandomKv(part.kv_heads, part.segment_tokens, part.head_dim, KvDtype::kBf16, random_));
      alone.emplace_back(part.payload_bytes);
      together.emplace_back(part.payload_bytes);
      EncodeJob job{&part, dense.back().data(),
                    static_cast<int64_t>(part.segment_tokens) * part.head_dim, alone.back().data()};
      ASSERT_TRUE(backend_->Encode(KvDtype::kBf16, {&job, 1}).ok());
      errors.push_back(job.relative_error);
      job.payload = together.back().data();
      jobs.push_back(job);
    }
  }
  ASSERT_TRUE(backend_->Encode(KvDtype::kBf16, jobs).ok());
  std::vector<std::vector<uint16_t>> decoded(dense.size()), decoded_alone(dense.size());
  std::vector<DecodeJob> decode;
  for (size_t i = 0; i < jobs.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(together[i], alone[i]);
    EXPECT_EQ(jobs[i].relative_error, errors[i]);
    decoded[i].resize(dense[i].size());
    decoded_alone[i].resize(dense[i].size());
    decode.push_back(
        {jobs[i].layout, alone[i].data(), decoded_alone[i].data(), jobs[i].head_stride});
    ASSERT_TRUE(backend_->Decode(KvDtype::kBf16, {&decode.back(), 1}).ok());
    decode.back().dense = decoded[i].data();
  }
  ASSERT_TRUE(backend_->Decode(KvDtype::kBf16, decode).ok());
  EXPECT_EQ(decoded, decoded_alone);
}

TEST_F(CodecParity, TheFirstJobThatIsRefusedIsNamed) {
  const CodecCase test = {64, 2, 128, BasisKind::kDct2, {8}, {4}, KvDtype::kBf16};
  const auto one = RandomLayout(test, random_), other = RandomLayout(test, random_);
  std::vector<std::vector<uint16_t>> dense;
  std::vector<std::vector<std::byte>> payloads;
  std::vector<EncodeJob> jobs;
  for (int i = 0; i < 6; ++i) {
    // Later layouts first: the order of jobs counts, not that in which they are done.
    const PartLayout& layout = (i % 2 == 0 ? other : one)->part(0, Part::kK);
    dense.push_back(RandomKv(2, 128, 64, test.dtype, random_));
    payloads.emplace_back(layout.payload_bytes);
    jobs.push_back({&layout, dense.back().data(), 128 * 64, payloads.back().data()});
  }
  dense[5][7] = dense[2][64 * 3 + 1] = FloatToBf16(INFINITY);
  const absl::Status status = backend_->Encode(test.dtype, jobs);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("head 0, token 3 of the segment, channel 1"));
}

TEST_F(CodecParity, BadJobsAreRefused) {
  const CodecCase test = {64, 2, 128, BasisKind::kDct2, {8}, {4}, KvDtype::kBf16};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  auto dense = RandomKv(2, 128, 64, test.dtype, random_);
  std::vector<std::byte> payload(layout.payload_bytes + 1);
  const EncodeJob good{&layout, dense.data(), 128 * 64, payload.data()};
  const auto expect_refused = [&](EncodeJob job, const char* field,
                                  KvDtype dtype = KvDtype::kBf16) {
    const absl::Status encode = backend_->Encode(dtype, {&job, 1});
    EXPECT_EQ(encode.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(encode.message()), testing::HasSubstr(field));
    const DecodeJob decode_job{job.layout, job.payload, const_cast<uint16_t*>(job.dense),
                               job.head_stride};
    const absl::Status decode = backend_->Decode(dtype, {&decode_job, 1});
    EXPECT_EQ(decode.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(decode.message()), testing::HasSubstr(field));
  };
  EncodeJob job = good;
  job.layout = nullptr;
  expect_refused(job, "layout");
  job = good;
  job.dense = nullptr;
  expect_refused(job, "dense");
  job = good;
  job.payload = nullptr;
  expect_refused(job, "payload");
  job = good;
  job.payload = payload.data() + 1;
  expect_refused(job, "aligned");
  job = good;
  job.head_stride = 128 * 64 - 1;
  expect_refused(job, "head_stride");
  expect_refused(good, "dtype", static_cast<KvDtype>(7));
  EXPECT_TRUE(backend_->Encode(KvDtype::kBf16, {}).ok()) << "no jobs are no error";
}

}  // namespace
}  // namespace fourierkv
