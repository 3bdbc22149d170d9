#include "compute/cache/exact_layer.h"

#include <gtest/gtest.h>

#include <vector>

#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

constexpr int kHeads = 3;
constexpr int kDim = 8;

// Every value says where it belongs.
float Value(int64_t token, int head, int channel, bool is_v) {
  return static_cast<float>(token) + 256.0f * head + 1024.0f * channel * (is_v ? -1 : 1);
}

std::vector<float> Tokens(int64_t first, int64_t n, bool is_v) {
  std::vector<float> values;
  for (int64_t t = first; t < first + n; ++t) {
    for (int h = 0; h < kHeads; ++h) {
      for (int d = 0; d < kDim; ++d) values.push_back(Value(t, h, d, is_v));
    }
  }
  return values;
}

void Add(ExactLayer& layer, int64_t first_value, int64_t n) {
  const int64_t at = layer.tokens();
  layer.Resize(at + n);
  layer.WriteTokens(at, n, Tokens(first_value, n, false).data(),
                    Tokens(first_value, n, true).data());
}

void ExpectToken(const ExactLayer& layer, int64_t index, int64_t value, KvDtype dtype) {
  const ExactBlock block = layer.block();
  for (int h = 0; h < kHeads; ++h) {
    for (int d = 0; d < kDim; ++d) {
      const int64_t at = h * block.head_stride + index * kDim + d;
      ASSERT_EQ(block.k[at], FloatToKv(Value(value, h, d, false), dtype)) << index << " " << h;
      ASSERT_EQ(block.v[at], FloatToKv(Value(value, h, d, true), dtype)) << index << " " << h;
    }
  }
}

TEST(ExactLayer, KeepsTokensWhileItGrows) {
  for (KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    ExactLayer layer(kHeads, kDim, dtype);
    for (int64_t first = 0; first < 200; first += 7) Add(layer, first, 7);
    ASSERT_EQ(layer.block().tokens, layer.tokens());
    for (int64_t t = 0; t < layer.tokens(); ++t) ExpectToken(layer, t, t, dtype);
  }
}

TEST(ExactLayer, EraseMovesDownWhatStandsBehind) {
  ExactLayer layer(kHeads, kDim, KvDtype::kBf16);
  Add(layer, 0, 100);
  layer.Erase(10, 30);
  ASSERT_EQ(layer.tokens(), 70);
  for (int64_t t = 0; t < 70; ++t) ExpectToken(layer, t, t < 10 ? t : t + 30, KvDtype::kBf16);
}

TEST(ExactLayer, NothingMovesWithinWhatWasReserved) {
  ExactLayer layer(kHeads, kDim, KvDtype::kBf16);
  layer.Reserve(150);
  Add(layer, 0, 1);
  const uint16_t* const k = layer.block().k;
  Add(layer, 1, 149);
  EXPECT_EQ(layer.block().k, k);
  EXPECT_EQ(layer.capacity(), 150);
}

TEST(ExactLayer, TakesTokensByHead) {
  ExactLayer layer(kHeads, kDim, KvDtype::kBf16);
  Add(layer, 0, 20);
  std::vector<uint16_t> k, v;
  for (int h = 0; h < kHeads; ++h) {
    for (int64_t t = 105; t < 108; ++t) {
      for (int d = 0; d < kDim; ++d) {
        k.push_back(FloatToBf16(Value(t, h, d, false)));
        v.push_back(FloatToBf16(Value(t, h, d, true)));
      }
    }
  }
  layer.WriteHeads(5, 3, k.data(), v.data());
  for (int64_t t = 0; t < 20; ++t) {
    ExpectToken(layer, t, t >= 5 && t < 8 ? t + 100 : t, KvDtype::kBf16);
  }
}

TEST(ExactLayer, VersionsChangeWithTokensThatMayHaveBeenRead) {
  ExactLayer layer(kHeads, kDim, KvDtype::kBf16);
  Add(layer, 0, 10);
  const uint64_t version = layer.block().version;
  EXPECT_NE(version, 0u);
  EXPECT_NE(version, ExactLayer(kHeads, kDim, KvDtype::kBf16).block().version);
  Add(layer, 10, 5);
  EXPECT_EQ(layer.block().version, version) << "what was there is still there";
  layer.Resize(12);
  EXPECT_EQ(layer.block().version, version) << "what is left is still there";
  Add(layer, 50, 2);
  const uint64_t rewritten = layer.block().version;
  EXPECT_NE(rewritten, version) << "tokens 12 and 13 were others";
  layer.Erase(3, 2);
  const uint64_t erased = layer.block().version;
  EXPECT_NE(erased, rewritten);
  Add(layer, 60, 1);
  EXPECT_EQ(layer.block().version, erased);
  const std::vector<uint16_t> values(kHeads * kDim);
  layer.WriteHeads(4, 1, values.data(), values.data());
  EXPECT_NE(layer.block().version, erased);
}

TEST(ExactLayer, VersionsChangeWhenGapsAreFilled) {
  ExactLayer layer(kHeads, kDim, KvDtype::kBf16);
  const std::vector<uint16_t> values(kHeads * kDim);
  layer.Resize(2);
  layer.WriteHeads(1, 1, values.data(), values.data());
  const uint64_t half = layer.block().version;
  layer.WriteHeads(0, 1, values.data(), values.data());
  EXPECT_NE(layer.block().version, half);
}

}  // namespace
}  // namespace fourierkv
