#include "kv_service/core/form_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_fixtures.h"

namespace fourierkv {

void PrintTo(const FormWay& way, std::ostream* out) {
  *out << FormName(way.form) << " of " << FormName(way.source);
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr SegmentForm kE = SegmentForm::kExact;
constexpr SegmentForm kC = SegmentForm::kCompact;
constexpr SegmentForm kD = SegmentForm::kDense;
constexpr SegmentForm kL = SegmentForm::kLossless;
constexpr SegmentForm kA = SegmentForm::kArchived;

class FormPlannerTest : public testing::Test {
 protected:
  // Segment 1, full, or the tail behind it, held in `forms`.
  StoredSegment Holding(const std::vector<SegmentForm>& forms, bool tail = false) {
    StoredSegment segment = MakeChain(context_, RandomTokens(rng_, 2 * kS + 3))[tail ? 2 : 1];
    for (const SegmentForm form : forms) {
      segment.forms[form] = MakeForm(segment, form, *budget_, form == kC ? 0.25f : 0);
    }
    return segment;
  }
  static std::vector<FormWay> Ways(const StoredSegment& segment, std::vector<SegmentForm> wanted) {
    return WaysToServe(segment, wanted);
  }

  std::mt19937 rng_{std::random_device{}()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("memory", 1 << 20);
};

TEST_F(FormPlannerTest, HeldFormsComeFirstInTheOrderAskedFor) {
  EXPECT_THAT(Ways(Holding({kE, kC}), {kC, kE}), ElementsAre(FormWay{kC, kC}, FormWay{kE, kE}));
  EXPECT_THAT(Ways(Holding({kE}), {kC, kE}), ElementsAre(FormWay{kE, kE}, FormWay{kC, kE}));
  EXPECT_THAT(Ways(Holding({kL, kC}), {kE, kC}), ElementsAre(FormWay{kC, kC}, FormWay{kE, kL}));
}

TEST_F(FormPlannerTest, ExactDataBecomesEverything) {
  EXPECT_THAT(Ways(Holding({kE}), {kL, kC, kD}),
              ElementsAre(FormWay{kL, kE}, FormWay{kC, kE}, FormWay{kD, kE}));
  EXPECT_THAT(Ways(Holding({kL}), {kE, kC, kD}),
              ElementsAre(FormWay{kE, kL}, FormWay{kC, kL}, FormWay{kD, kL}));
}

TEST_F(FormPlannerTest, DenseIsWhatCompactDecodesToIfThereIsAChoice) {
  EXPECT_THAT(Ways(Holding({kL, kC}), {kD}), ElementsAre(FormWay{kD, kC}, FormWay{kD, kL}));
}

TEST_F(FormPlannerTest, LostBitsDoNotComeBack) {
  EXPECT_THAT(Ways(Holding({kC}), {kE, kL}), IsEmpty());
  EXPECT_THAT(Ways(Holding({kE, kC}), {kA}), IsEmpty());
  EXPECT_THAT(Ways(Holding({}), {kE, kC, kD, kL, kA}), IsEmpty());
}

TEST_F(FormPlannerTest, OnlyFullSegmentsWithAProfileBecomeCompact) {
  EXPECT_THAT(Ways(Holding({kE}, /*tail=*/true), {kC, kL}), ElementsAre(FormWay{kL, kE}));
  context_ = SmallContext(/*with_profile=*/false);
  EXPECT_THAT(Ways(Holding({kL}), {kC, kE}), ElementsAre(FormWay{kE, kL}));
}

TEST_F(FormPlannerTest, ErrorsAreKnownExceptOfWhatIsYetToBeEncoded) {
  const StoredSegment segment = Holding({kC, kL});
  EXPECT_EQ(KnownError(segment, {kC, kC}), 0.25f);
  EXPECT_EQ(KnownError(segment, {kD, kC}), 0.25f);
  EXPECT_EQ(KnownError(segment, {kD, kL}), 0);
  EXPECT_EQ(KnownError(segment, {kE, kL}), 0);
  EXPECT_EQ(KnownError(segment, {kC, kL}), std::nullopt);
}

}  // namespace
}  // namespace fourierkv
