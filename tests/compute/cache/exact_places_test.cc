#include "compute/cache/exact_places.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace fourierkv {
namespace {

// Which of the first segments are exact, and where their tokens stand, one by one.
TEST(ExactPlacesTest, AreThoseOfTheTokensThatAreNotCompact) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    const int64_t segment = 1 + static_cast<int64_t>(random() % 5);
    ExactPlaces places(segment);
    FillPlan plan;
    std::vector<bool> compact = {false};
    for (int i = 0, n = static_cast<int>(random() % 8); i < n; ++i) {
      compact.push_back(random() % 3 != 0);
      places.Settle(compact.back());
      if (!compact.back()) plan.exact_inside.push_back(i + 1);
      plan.compact_segments = i + 1;
    }
    plan.length = (static_cast<int64_t>(compact.size()) + 2) * segment + 1;
    const ExactPlaces planned(segment, plan);
    EXPECT_EQ(planned.compact_tokens(), places.compact_tokens());
    EXPECT_EQ(planned.unsettled_index(), places.unsettled_index());
    int64_t index = 0, compact_index = 0;
    for (int64_t position = 0; position < plan.length; ++position) {
      const int64_t i = position / segment;
      const bool is_compact = i < static_cast<int64_t>(compact.size()) && compact[i];
      ASSERT_EQ(places.IndexOf(position), is_compact ? -1 : index);
      ASSERT_EQ(planned.IndexOf(position), is_compact ? -1 : index);
      if (!is_compact) {
        ASSERT_EQ(places.PositionOf(index++), position);
      }
      if (position % segment != 0) continue;
      ASSERT_EQ(places.CompactIndexOf(i), is_compact ? compact_index : -1);
      if (is_compact) {
        ASSERT_EQ(places.SegmentOf(compact_index++), i);
      }
    }
    EXPECT_EQ(places.compact_segments(), compact_index);
  }
}

TEST(ExactPlacesTest, ARunHasNoCompactTokenInside) {
  ExactPlaces places(4);
  places.Settle(true);   // 4 to 7
  places.Settle(false);  // 8 to 11 stay
  EXPECT_EQ(places.IndexOfRun(0, 4, 20), 0);
  EXPECT_EQ(places.IndexOfRun(8, 12, 20), 4);
  EXPECT_EQ(places.IndexOfRun(3, 2, 20), -1);
  EXPECT_EQ(places.IndexOfRun(3, 6, 20), -1) << "both ends are exact";
  EXPECT_EQ(places.IndexOfRun(16, 5, 20), -1) << "beyond the end";
  EXPECT_EQ(places.IndexOfRun(-1, 2, 20), -1);
  EXPECT_EQ(places.IndexOfRun(0, 0, 20), -1);
  EXPECT_EQ(places.IndexOfRun(INT64_MAX, 2, 20), -1);
}

TEST(FillPlanTest, PlansThatCannotBeAreRefused) {
  EXPECT_TRUE(
      CheckFillPlan({.length = 12, .compact_segments = 2, .exact_inside = {1}}, 4, 12).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(CheckFillPlan({.length = 0}, 4, 12)));
  EXPECT_TRUE(absl::IsResourceExhausted(CheckFillPlan({.length = 13}, 4, 12)));
  EXPECT_TRUE(absl::IsInvalidArgument(CheckFillPlan({.length = 11, .compact_segments = 2}, 4, 12)));
  EXPECT_TRUE(absl::IsInvalidArgument(CheckFillPlan({.length = 12, .compact_segments = 1}, 0, 12)));
  EXPECT_TRUE(absl::IsInvalidArgument(
      CheckFillPlan({.length = 12, .compact_segments = 2, .exact_inside = {2, 2}}, 4, 12)));
  EXPECT_TRUE(absl::IsInvalidArgument(
      CheckFillPlan({.length = 12, .compact_segments = 1, .exact_inside = {2}}, 4, 12)));
}

}  // namespace
}  // namespace fourierkv
