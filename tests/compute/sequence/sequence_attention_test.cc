// Attention to the middle against float64 attention over the decoded reference.

#include "compute/sequence/sequence_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "compute/codec/reference_codec.h"
#include "compute/codec/sequence_reference.h"
#include "tests/compute/sequence/sequence_test_util.h"

namespace fourierkv {
namespace {

struct Case {
  const char* name;
  int queries;
  int group;
  int frequencies;
  int64_t middle;
  bool rescale;
};

class MiddleAttention : public ::testing::TestWithParam<Case> {};

TEST_P(MiddleAttention, IsThatOverTheDecodedTokens) {
  const Case& c = GetParam();
  const uint64_t seed = FreshSeed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const KvGeometry g{.layers = 1, .kv_heads = 3, .head_dim = 24};
  const SequenceScope scope{.sink_tokens = 1,
                            .recent_tokens = 1,
                            .frequencies = c.frequencies,
                            .peak_rescale = c.rescale};
  const int64_t tokens = c.middle + 2, capacity = tokens + 7;
  const SequenceLayout layout(RandomSequenceProfile(random, g, scope, 32));
  auto basis = std::make_shared<const SequenceBasis>(scope.Period(capacity), c.frequencies);

  std::vector<SequenceMiddle> middles;
  std::vector<std::vector<double>> decoded;
  for (Part part : kParts) {
    const SequencePart& of = layout.part(0, part);
    const std::vector<uint16_t> dense =
        RandomSequence(random, KvDtype::kBf16, g.kv_heads, tokens, g.head_dim);
    std::vector<std::byte> payload(of.PayloadBytes(tokens));
    reference::EncodeSequence(of, tokens, capacity, KvDtype::kBf16, dense, payload);
    decoded.push_back(reference::DecodeSequence(of, KvDtype::kBf16, payload));
    SequenceMiddle& middle = middles.emplace_back(&of, basis);
    for (int h = 0; h < g.kv_heads; ++h) {
      const uint16_t* from = dense.data() + (h * tokens + 1) * g.head_dim;
      middle.AppendHead(h, KvDtype::kBf16, from, c.middle);
      middle.SettleHead(h, KvDtype::kBf16, from);
    }
  }

  const int query_heads = g.kv_heads * c.group;
  std::normal_distribution<float> normal;
  std::vector<float> q(c.queries * query_heads * g.head_dim);
  for (float& value : q) value = normal(random);
  std::vector<float> out(q.size()), lse(c.queries * query_heads);
  ThreadPool pool(2);
  AttendToMiddle(middles[0], middles[1], c.queries, query_heads, 0.3f, q.data(), out.data(),
                 lse.data(), pool);

  for (int h = 0; h < query_heads; ++h) {
    const int64_t first = ((h / c.group) * tokens + 1) * g.head_dim;
    const std::span<const double> k(decoded[0].data() + first, c.middle * g.head_dim);
    const std::span<const double> v(decoded[1].data() + first, c.middle * g.head_dim);
    for (int i = 0; i < c.queries; ++i) {
      const int64_t vector = int64_t{i} * query_heads + h;
      const std::vector<double> one(q.begin() + vector * g.head_dim,
                                    q.begin() + (vector + 1) * g.head_dim);
      std::vector<double> expected(g.head_dim), expected_lse(1);
      reference::Attend(one, k, v, 1, c.middle, g.head_dim, 0.3f, expected, expected_lse);
      const std::vector<float> got(out.begin() + vector * g.head_dim,
                                   out.begin() + (vector + 1) * g.head_dim);
      ASSERT_LT(RelativeDistance(got, expected), 3e-5) << "query " << i << " head " << h;
      ASSERT_NEAR(lse[vector], expected_lse[0], 2e-5 * std::abs(expected_lse[0]) + 2e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, MiddleAttention,
                         ::testing::Values(Case{"OneQuery", 1, 1, 16, 777, false},
                                           Case{"OneQueryOfAGroup", 1, 4, 30, 1203, false},
                                           Case{"Rescaled", 1, 2, 16, 500, true},
                                           Case{"FewQueries", 7, 2, 24, 401, false},
                                           Case{"RowsOfSeveralBlocks", 171, 4, 8, 301, false},
                                           Case{"RescaledChunk", 65, 3, 12, 203, true},
                                           Case{"DenseFrequencies", 3, 2, 100, 230, false},
                                           Case{"LessThanATile", 2, 1, 3, 9, false},
                                           Case{"ManyTiles", 1, 2, 5, 9001, false}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace fourierkv
