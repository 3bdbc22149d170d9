// Which stored segments a worker fetches, and in which form.

#include "clients/worker/prefix_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr int kS = 128;

enum Held { kExact, kCompact, kBoth };

v1::MatchPrefixResponse MatchOf(const std::vector<Held>& full, int tail_tokens = 0) {
  v1::MatchPrefixResponse match;
  const auto add = [&](Held held, int tokens) {
    v1::MatchedSegment* segment = match.add_segments();
    segment->set_index(match.segments_size() - 1);
    segment->set_block_key(absl::StrCat("key ", match.segments_size() - 1));
    segment->set_tokens(tokens);
    if (held != kExact) segment->add_forms()->set_form(v1::SEGMENT_FORM_COMPACT);
    if (held != kCompact) segment->add_forms()->set_form(v1::SEGMENT_FORM_EXACT);
  };
  for (const Held held : full) add(held, kS);
  if (tail_tokens > 0) add(kExact, tail_tokens);
  return match;
}

// For a decoder that computes at least the last token of a prompt of `sequence` tokens.
PrefixPlan Plan(const v1::MatchPrefixResponse& match, int64_t sequence, int64_t window = kS,
                v1::CacheMode mode = v1::CACHE_MODE_COMPACT) {
  return PlanPrefix(match, {.mode = mode,
                            .segment_tokens = kS,
                            .recent_window = window,
                            .sequence_tokens = sequence,
                            .max_reused = sequence - 1});
}

// (segment, tokens, form) of every fetch: "3c" is all of segment 3, compact; "4e:7" seven tokens.
std::vector<std::string> Fetches(const PrefixPlan& plan) {
  std::vector<std::string> fetches;
  for (const PlannedFetch& fetch : plan.fetches) {
    fetches.push_back(absl::StrCat(fetch.segment, fetch.compact ? "c" : "e",
                                   fetch.tokens == kS ? "" : absl::StrCat(":", fetch.tokens)));
    EXPECT_EQ(fetch.request.block_key(), absl::StrCat("key ", fetch.segment));
    if (fetch.compact) {
      EXPECT_THAT(fetch.request.accepted_forms(), ElementsAre(v1::SEGMENT_FORM_COMPACT));
    } else {
      EXPECT_THAT(fetch.request.accepted_forms(),
                  ElementsAre(v1::SEGMENT_FORM_EXACT, v1::SEGMENT_FORM_LOSSLESS));
    }
  }
  return fetches;
}

TEST(PrefixPlanTest, NothingMatchedNothingFetched) {
  const PrefixPlan plan = Plan(MatchOf({}), 1000);
  EXPECT_TRUE(plan.empty());
  EXPECT_THAT(Fetches(plan), IsEmpty());
}

TEST(PrefixPlanTest, SinkExactThenCompactThenTheWindowExact) {
  // 769 tokens: compact are those that a cache filled token by token would have sealed.
  const PrefixPlan plan = Plan(MatchOf({kExact, kBoth, kBoth, kBoth, kBoth, kBoth}), 769);
  EXPECT_THAT(Fetches(plan), ElementsAre("0e", "1c", "2c", "3c", "4c", "5e"));
  EXPECT_EQ(plan.fill.length, 768);
  EXPECT_EQ(plan.fill.compact_segments, 4);
  EXPECT_EQ(plan.segment_tokens, kS);
}

TEST(PrefixPlanTest, AWideWindowKeepsEverythingExact) {
  const PrefixPlan plan = Plan(MatchOf({kExact, kBoth, kBoth}), 400, /*window=*/1024);
  EXPECT_THAT(Fetches(plan), ElementsAre("0e", "1e", "2e"));
  EXPECT_EQ(plan.fill.compact_segments, 0);
}

TEST(PrefixPlanTest, WhatIsNotHeldExactIsTakenCompactWithEverythingBeforeIt) {
  const auto match = MatchOf({kExact, kBoth, kBoth, kCompact, kBoth});
  EXPECT_THAT(Fetches(Plan(match, 700, /*window=*/1024)),
              ElementsAre("0e", "1c", "2c", "3c", "4e"));
}

TEST(PrefixPlanTest, WithoutAnExactSinkNothingIsUsed) {
  EXPECT_TRUE(Plan(MatchOf({kCompact, kBoth, kBoth}), 1000).empty());
}

TEST(PrefixPlanTest, ExactModeEndsWhereTheExactFormIsMissing) {
  const auto plan =
      Plan(MatchOf({kExact, kBoth, kExact, kCompact, kExact}), 1000, kS, v1::CACHE_MODE_EXACT);
  EXPECT_THAT(Fetches(plan), ElementsAre("0e", "1e", "2e"));
  EXPECT_EQ(plan.fill.length, 3 * kS);
  EXPECT_EQ(plan.fill.compact_segments, 0);
  EXPECT_TRUE(Plan(MatchOf({kCompact}), 1000, kS, v1::CACHE_MODE_EXACT).empty());
}

TEST(PrefixPlanTest, TheTailIsTakenIfEverythingBeforeItIs) {
  const auto match = MatchOf({kExact, kBoth}, /*tail_tokens=*/50);
  EXPECT_THAT(Fetches(Plan(match, 400, 1024)), ElementsAre("0e", "1e", "2e:50"));
  EXPECT_THAT(Fetches(Plan(match, 400, kS, v1::CACHE_MODE_EXACT)),
              ElementsAre("0e", "1e", "2e:50"));
  EXPECT_THAT(Fetches(Plan(MatchOf({}, 50), 60)), ElementsAre("0e:50")) << "even alone";
  // In exact mode a gap before it ends the plan.
  EXPECT_THAT(Fetches(Plan(MatchOf({kExact, kCompact}, 50), 400, kS, v1::CACHE_MODE_EXACT)),
              ElementsAre("0e"));
  auto lost = match;
  lost.mutable_segments(2)->clear_forms();
  EXPECT_THAT(Fetches(Plan(lost, 400, 1024)), ElementsAre("0e", "1e"));
}

TEST(PrefixPlanTest, TheLastTokenIsLeftToCompute) {
  // An exact last segment is cut, a compact one is left out whole.
  EXPECT_THAT(Fetches(Plan(MatchOf({kExact, kBoth, kBoth}), 3 * kS, 1024)),
              ElementsAre("0e", "1e", "2e:127"));
  const PrefixPlan dropped = Plan(MatchOf({kExact, kCompact, kCompact}), 3 * kS, 1024);
  EXPECT_THAT(Fetches(dropped), ElementsAre("0e", "1c"));
  EXPECT_EQ(dropped.fill.length, 2 * kS);
  EXPECT_EQ(dropped.fill.compact_segments, 1);
  EXPECT_THAT(Fetches(Plan(MatchOf({kExact}), kS)), ElementsAre("0e:127"));
  // So is a tail; one of a single token is not worth asking for.
  EXPECT_THAT(Fetches(Plan(MatchOf({kExact, kBoth}, 50), 2 * kS + 50)),
              ElementsAre("0e", "1e", "2e:49"));
  EXPECT_THAT(Fetches(Plan(MatchOf({kExact, kBoth}, 1), 2 * kS + 1)), ElementsAre("0e", "1e"));
  EXPECT_THAT(Fetches(Plan(MatchOf({kExact, kCompact}, 1), 2 * kS + 1)), ElementsAre("0e", "1c"));
}

TEST(PrefixPlanTest, NeverMoreThanAllowed) {
  const auto match = MatchOf({kExact, kBoth, kBoth, kBoth});
  for (const int64_t max : {0, 1, 127, 128, 129, 255, 256, 300, 511, 512, 513}) {
    SCOPED_TRACE(max);
    for (const v1::CacheMode mode : {v1::CACHE_MODE_COMPACT, v1::CACHE_MODE_EXACT}) {
      const PrefixPlan plan = PlanPrefix(match, {.mode = mode,
                                                 .segment_tokens = kS,
                                                 .recent_window = 10,
                                                 .sequence_tokens = 10000,
                                                 .max_reused = max});
      EXPECT_LE(plan.fill.length, max);
      int64_t tokens = 0;
      for (const PlannedFetch& fetch : plan.fetches) {
        tokens += fetch.tokens;
        EXPECT_TRUE(!fetch.compact || fetch.tokens == kS) << "a compact segment cannot be cut";
      }
      EXPECT_EQ(tokens, plan.fill.length);
      EXPECT_LE((1 + plan.fill.compact_segments) * kS, std::max<int64_t>(plan.fill.length, kS));
    }
  }
}

// Six full segments held compact with these errors and, where said, exactly as well.
struct Measured {
  float error;  // of the compact form; negative: not held
  v1::SegmentForm exactly = v1::SEGMENT_FORM_UNSPECIFIED;
};

PrefixPlan BoundedPlan(const std::vector<Measured>& segments, float bound) {
  v1::MatchPrefixResponse match;
  for (const Measured& measured : segments) {
    v1::MatchedSegment* segment = match.add_segments();
    segment->set_block_key(absl::StrCat("key ", match.segments_size() - 1));
    segment->set_tokens(kS);
    if (measured.error >= 0) {
      v1::HeldForm* form = segment->add_forms();
      form->set_form(v1::SEGMENT_FORM_COMPACT);
      form->set_max_relative_error(measured.error);
    }
    if (measured.exactly != v1::SEGMENT_FORM_UNSPECIFIED) {
      segment->add_forms()->set_form(measured.exactly);
    }
  }
  return PlanPrefix(match, {.mode = v1::CACHE_MODE_COMPACT,
                            .segment_tokens = kS,
                            .recent_window = 0,
                            .sequence_tokens = 6 * kS + 1,
                            .max_reused = 6 * kS,
                            .max_relative_error = bound});
}

constexpr auto kExactly = v1::SEGMENT_FORM_EXACT;
constexpr auto kLosslessly = v1::SEGMENT_FORM_LOSSLESS;

TEST(PrefixPlanTest, SegmentsBeyondTheBoundAreTakenExactly) {
  const PrefixPlan plan = BoundedPlan({{-1, kLosslessly},
                                       {0.1f},
                                       {0.4f, kExactly},
                                       {0.2f, kExactly},
                                       {0.3f, kLosslessly},
                                       {0.1f, kExactly}},
                                      0.2f);
  EXPECT_THAT(Fetches(plan), ElementsAre("0e", "1c", "2e", "3c", "4e", "5c"));
  EXPECT_EQ(plan.fill.length, 6 * kS);
  EXPECT_EQ(plan.fill.compact_segments, 5);
  EXPECT_THAT(plan.fill.exact_inside, ElementsAre(2, 4));
  EXPECT_EQ(plan.max_relative_error, 0.2f);
}

TEST(PrefixPlanTest, ThePlanEndsBeforeASegmentThatIsOnlyHeldBeyondTheBound) {
  const std::vector<Measured> segments = {{-1, kExactly}, {0.1f}, {0.4f}, {0.1f}, {0.1f}, {0.1f}};
  EXPECT_THAT(Fetches(BoundedPlan(segments, 0.2f)), ElementsAre("0e", "1c"));
  const PrefixPlan unbounded = BoundedPlan(segments, std::numeric_limits<float>::infinity());
  EXPECT_EQ(unbounded.fill.length, 6 * kS);
  EXPECT_THAT(unbounded.fill.exact_inside, IsEmpty());
  EXPECT_EQ(unbounded.max_relative_error, 0) << "none";
}

TEST(PrefixPlanTest, AnErrorThatNobodyMeasuredIsNotWithinABound) {
  const PrefixPlan plan = BoundedPlan({{-1, kExactly}, {-1, kExactly}, {0.1f}}, 0.2f);
  EXPECT_THAT(Fetches(plan), ElementsAre("0e", "1e", "2c"));
}

}  // namespace
}  // namespace fourierkv
