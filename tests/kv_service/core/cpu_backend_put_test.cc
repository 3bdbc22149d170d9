// The core over the real backend, at sizes that make several batches of its encoder.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "compute/base/bfloat16.h"
#include "core_fixtures.h"
#include "kv_service/core/segment_reader.h"

namespace fourierkv {
namespace {

TEST(CpuBackendPutTest, WhatIsPutComesBackWithinTheErrorItStates) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  CacheNamespace ns = SmallNamespace();
  ns.geometry = {.layers = 3, .kv_heads = 4, .head_dim = 64};
  ns.segment_tokens = 256;
  const auto layout = std::make_shared<const ProfileLayout>(DefaultProfile(ns.geometry));
  ns.profile_id = layout->id();
  const auto context = MakeNamespaceContext(ns, layout);
  ASSERT_TRUE(context.ok()) << context.status();
  StoreFixture f(int64_t{256} << 20);
  const auto backend = CreateCpuBackend(2);
  PutManager puts(&f.store, backend.get(), 1);
  PutPlan plan;
  plan.context = *context;
  plan.token_ids = RandomTokens(rng, 20 * 256);
  plan.keep_exact_from = 100;
  auto session = puts.Begin(plan);
  ASSERT_TRUE(session.ok()) << session.status();
  std::vector<std::vector<uint16_t>> sent;
  for (const PlannedSegment& segment : (*session)->segments()) {
    for (int layer = 0; layer < 3; ++layer) {
      for (const Part part : kParts) {
        sent.push_back(RandomPart(rng, ns.geometry, 256));
        const auto bytes = AsBytes(sent.back());
        const auto status =
            (*session)->AddChunk(segment.index, layer, part, 0, bytes, Checksum(bytes));
        ASSERT_TRUE(status.ok()) << status;
      }
    }
  }
  const auto stats = (*session)->Commit();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->encoded_dense_bytes, ns.geometry.DenseBytes(19 * 256));
  EXPECT_LT(stats->compact_bytes, stats->encoded_dense_bytes / 3);
  EXPECT_GT(stats->encode_seconds, 0);

  SegmentReader reader(&f.store, backend.get(), f.budget);
  std::vector<SegmentWant> wants;
  for (const PlannedSegment& segment : (*session)->segments()) {
    wants.push_back({segment.key, {SegmentForm::kDense}});
  }
  auto open = reader.Open(wants);
  ASSERT_TRUE(open.ok()) << open.status();
  for (int layer = 0; layer < 3; ++layer) {
    const auto read = reader.ReadLayer(std::span(*open), layer);
    ASSERT_TRUE(read.ok()) << read.status();
    for (size_t i = 0; i < read->size(); ++i) {
      ASSERT_EQ((*read)[i].missing, MissingReason::kNone);
      const auto blob = (*read)[i].v->bytes();
      const float stated = OpenBlob(blob)->relative_error;
      EXPECT_LE(stated, stats->max_relative_error);
      const std::vector<uint16_t>& values = sent[(i * 3 + layer) * 2 + 1];
      double error = 0;
      double norm = 0;
      for (size_t j = 0; j < values.size(); ++j) {
        uint16_t bits;
        std::memcpy(&bits, BlobPayload(blob).data() + 2 * j, sizeof bits);
        const double x = Bf16ToFloat(values[j]);
        error += (Bf16ToFloat(bits) - x) * (Bf16ToFloat(bits) - x);
        norm += x * x;
      }
      // Decoded values are rounded to bf16 once more.
      EXPECT_NEAR(std::sqrt(error / norm), stated, 0.004);
    }
  }
}

TEST(CpuBackendPutTest, NamesThePartWhoseValuesItRefuses) {
  std::mt19937 rng(3);
  StoreFixture f;
  const auto backend = CreateCpuBackend(1);
  PutManager puts(&f.store, backend.get(), 1);
  const auto stats = PutAll(puts, SmallContext(), RandomTokens(rng, 3 * kS),
                            [&](int64_t index, int layer, Part part) {
                              auto values = RandomPart(rng, kSmall, kS);
                              if (index == 2 && layer == 0 && part == Part::kV) {
                                values[7] = 0x7fc0;  // NaN
                              }
                              return values;
                            });
  EXPECT_EQ(stats.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(stats.status().ToString().find("segment 2 layer 0 V"), std::string::npos)
      << stats.status();
  EXPECT_EQ(f.budget->used(), 0);
}

}  // namespace
}  // namespace fourierkv
