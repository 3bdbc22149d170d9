#include "compute/codec/lossless_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zstd.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;
using Values = std::vector<uint16_t>;
using Bytes = std::vector<std::byte>;

constexpr size_t kPrefix = 8;

class LosslessCodecTest : public testing::Test {
 protected:
  Values Noise(size_t count) {
    Values values(count);
    for (uint16_t& v : values) v = static_cast<uint16_t>(rng_());
    return values;
  }
  // Tokens of 64 channels whose magnitudes differ, as those of K and V do.
  Values KvLike(size_t count) {
    std::normal_distribution<float> normal;
    float scale[64];
    for (float& s : scale) s = std::exp(normal(rng_));
    Values values(count);
    for (size_t i = 0; i < count; ++i) values[i] = FloatToBf16(scale[i % 64] * normal(rng_));
    return values;
  }
  static Bytes Encode(const Values& values) {
    Bytes out(LosslessBound(values.size()));
    const auto size = LosslessEncode(values, out);
    EXPECT_TRUE(size.ok()) << size.status();
    out.resize(*size);
    return out;
  }
  // Exactly as long as the payload, so that a sanitizer sees every byte read behind it.
  static absl::StatusOr<Values> Decode(const Bytes& payload, size_t count) {
    Values values(count);
    if (auto s = LosslessDecode(Bytes(payload), values); !s.ok()) return s;
    return values;
  }
  static std::string Refusal(const Bytes& payload, size_t count) {
    const auto decoded = Decode(payload, count);
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kDataLoss);
    return std::string(decoded.status().message());
  }
  static void SetSize(Bytes& payload, int plane, uint32_t size) {
    std::memcpy(payload.data() + 4 * plane, &size, sizeof size);
  }
  // A payload whose high plane is `frame`, and whose low plane is stored zeros.
  static Bytes WithHighPlane(const Bytes& frame, size_t count) {
    Bytes payload(kPrefix);
    SetSize(payload, 0, static_cast<uint32_t>(frame.size()));
    SetSize(payload, 1, static_cast<uint32_t>(count));
    payload.insert(payload.end(), frame.begin(), frame.end());
    payload.resize(payload.size() + count);
    return payload;
  }
  static Bytes Frame(size_t zeros) {
    const Bytes plane(zeros);
    Bytes frame(ZSTD_compressBound(zeros));
    frame.resize(ZSTD_compress(frame.data(), frame.size(), plane.data(), zeros, 1));
    return frame;
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
};

TEST_F(LosslessCodecTest, EveryBitPatternComesBack) {
  Values all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  EXPECT_EQ(*Decode(Encode(all), all.size()), all);
}

TEST_F(LosslessCodecTest, AnyNumberOfValuesComesBack) {
  for (size_t count : {0, 1, 2, 7, 8, 63, 64, 65, 1000, 4097, 100'003}) {
    SCOPED_TRACE(count);
    for (const Values& values : {Noise(count), KvLike(count), Values(count, 0x3f80)}) {
      const Bytes payload = Encode(values);
      EXPECT_LE(payload.size(), LosslessBound(count));
      EXPECT_EQ(*Decode(payload, count), values);
    }
  }
}

TEST_F(LosslessCodecTest, WhatLooksLikeKvShrinksAndNoiseIsStored) {
  const size_t count = 2 * 256 * 64;
  EXPECT_LT(Encode(KvLike(count)).size(), 2 * count * 3 / 4);
  EXPECT_LT(Encode(Values(count, 0x3f81)).size(), 100);
  EXPECT_EQ(Encode(Noise(count)).size(), LosslessBound(count));
}

TEST_F(LosslessCodecTest, APayloadCutAnywhereIsRefused) {
  const Values values = KvLike(512);
  const Bytes whole = Encode(values);
  for (size_t size = 0; size < whole.size(); ++size) {
    Refusal(Bytes(whole.begin(), whole.begin() + static_cast<long>(size)), values.size());
  }
  Bytes longer = whole;
  longer.push_back(std::byte{0});
  Refusal(longer, values.size());
}

TEST_F(LosslessCodecTest, APayloadOfAnotherNumberOfValuesIsRefused) {
  for (const Values& values : {KvLike(512), Values(512, 7), Noise(512)}) {
    for (const size_t count : {0, 1, 256, 511, 513, 1024, 100'000}) {
      Refusal(Encode(values), count);
    }
  }
}

// A flip inside a plane may go unnoticed here, as the blob's checksum is there for that; it must
// never do harm.
TEST_F(LosslessCodecTest, DamagedBitsNeverDoHarm) {
  const Values values = KvLike(256);
  const Bytes whole = Encode(values);
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    Bytes damaged = whole;
    damaged[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    const auto decoded = Decode(damaged, values.size());
    if (decoded.ok()) {
      EXPECT_EQ(decoded->size(), values.size());
      EXPECT_GE(bit, 8 * kPrefix) << "other sizes cannot decode";
    } else {
      EXPECT_EQ(decoded.status().code(), absl::StatusCode::kDataLoss);
    }
  }
  for (int round = 0; round < 2000; ++round) {
    Bytes damaged = whole;
    for (int k = 0; k < 5; ++k) damaged[rng_() % damaged.size()] = static_cast<std::byte>(rng_());
    Decode(damaged, values.size()).status().IgnoreError();
  }
}

TEST_F(LosslessCodecTest, FramesThatWouldUnpackToMoreAreRefused) {
  const Bytes bomb = Frame(size_t{1} << 26);  // a few kilobytes
  ASSERT_LT(bomb.size(), 20'000);
  EXPECT_THAT(Refusal(WithHighPlane(bomb, 20'000), 20'000), HasSubstr("high plane"));
}

TEST_F(LosslessCodecTest, ClaimedSizesAreCheckedBeforeAnythingIsRead) {
  const Values values = KvLike(512);
  Bytes payload = Encode(values);
  SetSize(payload, 0, 0xffffffff);
  EXPECT_THAT(Refusal(payload, values.size()), HasSubstr("planes of 4294967295"));
  payload = Encode(values);
  SetSize(payload, 1, 0);
  EXPECT_THAT(Refusal(payload, values.size()), HasSubstr("its planes need"));
  EXPECT_THAT(Refusal(Bytes(7), 4), HasSubstr("has 7 bytes"));
}

TEST_F(LosslessCodecTest, APlaneIsOneFrameOfTheRightLength) {
  constexpr size_t kCount = 4000;
  EXPECT_TRUE(Decode(WithHighPlane(Frame(kCount), kCount), kCount).ok());
  EXPECT_THAT(Refusal(WithHighPlane(Frame(kCount - 1), kCount), kCount), HasSubstr("has 3999"));
  Bytes two = Frame(kCount / 2);
  const Bytes half = two;
  two.insert(two.end(), half.begin(), half.end());
  EXPECT_THAT(Refusal(WithHighPlane(two, kCount), kCount), HasSubstr("no zstd frame"));
  EXPECT_THAT(Refusal(WithHighPlane(Bytes(100), kCount), kCount), HasSubstr("no zstd frame"));
  EXPECT_THAT(Refusal(WithHighPlane({}, kCount), kCount), HasSubstr("no zstd frame"));
}

}  // namespace
}  // namespace fourierkv
