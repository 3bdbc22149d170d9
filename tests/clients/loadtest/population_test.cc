#include "clients/loadtest/population.h"

#include <gtest/gtest.h>

#include <vector>

namespace fourierkv::loadtest {
namespace {

PopulationOptions Options() {
  return {
      .size = 10, .tokens = 1000, .segment_tokens = 128, .prefix_share = 0.5, .prefix_groups = 2};
}

std::vector<uint32_t> All(const Population& population, SequenceId id) {
  std::vector<uint32_t> tokens(population.options().tokens);
  population.Tokens(id, 0, population.options().tokens, tokens.data());
  return tokens;
}

size_t Common(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  size_t n = 0;
  while (n < a.size() && a[n] == b[n]) ++n;
  return n;
}

TEST(PopulationTest, SequencesShareWholeSegmentsWithTheirGroupAlone) {
  const Population population(Options());
  EXPECT_EQ(population.segments(), 8);
  EXPECT_EQ(population.SegmentTokens(6), 128);
  EXPECT_EQ(population.SegmentTokens(7), 1000 - 7 * 128);
  EXPECT_EQ(population.shared_segments(), 4);
  const auto first = All(population, {0, 0});
  EXPECT_EQ(Common(first, All(population, {0, 0})), 1000);
  EXPECT_EQ(Common(first, All(population, {2, 0})), 4 * 128);
  EXPECT_EQ(Common(first, All(population, {0, 1})), 4 * 128) << "nor does a new generation";
  EXPECT_EQ(Common(first, All(population, {1, 0})), 0) << "another group";
}

TEST(PopulationTest, WithoutShareNothingIsCommon_AndNeverIsTheLastSegment) {
  PopulationOptions options = Options();
  options.prefix_share = 0;
  const Population apart(options);
  EXPECT_EQ(Common(All(apart, {0, 0}), All(apart, {2, 0})), 0);
  options.prefix_share = 1;
  const Population together(options);
  EXPECT_EQ(Common(All(together, {0, 0}), All(together, {2, 0})), 7 * 128);
}

TEST(PopulationTest, TokensDoNotDependOnWhereReadingStarts) {
  const Population population(Options());
  const auto all = All(population, {3, 2});
  std::vector<uint32_t> part(300);
  population.Tokens({3, 2}, 400, 300, part.data());
  EXPECT_EQ(part, std::vector<uint32_t>(all.begin() + 400, all.begin() + 700));
  for (const uint32_t token : all) EXPECT_LT(token, 128256u);
}

TEST(PopulationTest, AFreshSequenceIsAskedForOnceItIsStored) {
  Population population(Options());
  EXPECT_EQ(population.Current(4), (SequenceId{4, 0}));
  EXPECT_EQ(population.Keys({4, 0}), nullptr);
  population.Learn({4, 0}, std::vector<Digest>(8));
  ASSERT_NE(population.Keys({4, 0}), nullptr);
  EXPECT_EQ(population.Keys({4, 0})->size(), 8);

  const SequenceId one = population.Fresh(4);
  const SequenceId two = population.Fresh(4);
  EXPECT_EQ(one, (SequenceId{4, 1}));
  EXPECT_EQ(two, (SequenceId{4, 2}));
  EXPECT_EQ(population.Current(4), (SequenceId{4, 0}));
  population.Learn(two, std::vector<Digest>(8));
  EXPECT_EQ(population.Current(4), two);
  population.Learn(one, std::vector<Digest>(8));
  EXPECT_EQ(population.Current(4), two) << "a put that was overtaken changes nothing";
  EXPECT_EQ(population.Keys({4, 0}), nullptr);
}

}  // namespace
}  // namespace fourierkv::loadtest
