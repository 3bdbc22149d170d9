#include "kv_service/core/segment_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_fixtures.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

class SegmentStoreTest : public testing::Test {
 protected:
  std::vector<StoredSegment> Chain(int64_t tokens) {
    return MakeChain(context_, RandomTokens(rng_, tokens));
  }

  std::mt19937 rng_{std::random_device{}()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture f_;
};

TEST_F(SegmentStoreTest, ACommittedChainMatchesWithItsTail) {
  const auto chain = Chain(3 * kS + 5);
  const auto result = f_.Commit(chain, true, true);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->stored, 4);
  EXPECT_EQ(result->forms_added, 7);
  const auto keys = f_.Keys(chain);
  const auto match = f_.store.Match(std::span(keys).first(3), keys[3]);
  ASSERT_TRUE(match.ok());
  ASSERT_EQ(match->segments.size(), 3);
  ASSERT_TRUE(match->tail.has_value());
  EXPECT_EQ(match->tail->tokens, 5);
  EXPECT_TRUE(match->tail->tail);
  EXPECT_EQ(match->segments[1].index, 1);
  EXPECT_EQ(match->segments[1].parent, keys[0]);
  EXPECT_EQ(match->segments[1].forms[SegmentForm::kExact].bytes,
            static_cast<int64_t>(kSmall.DenseBytes(kS) + 4 * kBlobHeaderBytes));
  EXPECT_EQ(match->segments[1].forms[SegmentForm::kCompact].bytes,
            static_cast<int64_t>(context_->layout->SegmentPayloadBytes() + 4 * kBlobHeaderBytes));
  EXPECT_FLOAT_EQ(match->segments[1].forms[SegmentForm::kCompact].max_relative_error, 0.25f);
  EXPECT_FLOAT_EQ(match->segments[1].forms[SegmentForm::kCompact].mean_relative_error, 0.25f);
  EXPECT_FALSE(match->lease.has_value());
  EXPECT_EQ(f_.metrics->match_hits, 4);
}

TEST_F(SegmentStoreTest, TheMatchEndsAtTheFirstMissingKey) {
  const auto chain = Chain(4 * kS + 1);
  ASSERT_TRUE(f_.Commit({chain.begin(), chain.begin() + 2}, true, false).ok());
  const auto keys = f_.Keys(chain);
  const auto match = f_.store.Match(std::span(keys).first(4), keys[4]);
  EXPECT_EQ(match->segments.size(), 2);
  EXPECT_FALSE(match->tail.has_value());
  EXPECT_EQ(f_.metrics->match_misses, 3);
  EXPECT_TRUE(f_.store.Match({})->segments.empty());
}

TEST_F(SegmentStoreTest, KeysThatDoNotFollowEachOtherDoNotMatch) {
  const auto a = Chain(2 * kS);
  const auto b = Chain(2 * kS);
  ASSERT_TRUE(f_.Commit(a, true, false).ok());
  ASSERT_TRUE(f_.Commit(b, true, false).ok());
  const BlockKey keys[] = {a[0].key, b[1].key};
  EXPECT_EQ(f_.store.Match(keys)->segments.size(), 1);
}

TEST_F(SegmentStoreTest, GetGivesFormsThatOutliveTheSegment) {
  const auto chain = Chain(kS);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  auto got = f_.store.Get(std::vector{Digest{}, chain[0].key});
  EXPECT_FALSE(got[0].has_value());
  ASSERT_TRUE(got[1].has_value());
  EXPECT_NE(got[1]->forms[SegmentForm::kExact], nullptr);
  EXPECT_EQ(got[1]->forms[SegmentForm::kCompact], nullptr);
  EXPECT_EQ(got[1]->exact_data(), got[1]->forms[SegmentForm::kExact]);
  EXPECT_EQ(got[1]->forms[SegmentForm::kDense], nullptr);
  ASSERT_TRUE(f_.store.Delete(f_.Keys(chain), false).ok());
  EXPECT_GT(f_.budget->used(), got[1]->forms[SegmentForm::kExact]->bytes());
  EXPECT_TRUE(OpenBlob(got[1]->forms[SegmentForm::kExact]->blob(1, Part::kV)->bytes()).ok());
  got.clear();
  EXPECT_EQ(f_.budget->used(), 0);
}

TEST_F(SegmentStoreTest, CommittingAgainAddsOnlyTheMissingForm) {
  const auto chain = Chain(2 * kS);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  const FormPtr before = f_.store.Get(f_.Keys(chain))[1]->forms[SegmentForm::kExact];
  const int64_t used = f_.budget->used();
  const auto again = f_.Commit(chain, true, false);
  EXPECT_EQ(again->stored, 0);
  EXPECT_EQ(again->deduplicated, 2);
  EXPECT_EQ(again->forms_added, 0);
  EXPECT_EQ(f_.budget->used(), used);
  EXPECT_EQ(f_.store.Get(f_.Keys(chain))[1]->forms[SegmentForm::kExact], before);
  EXPECT_EQ(f_.Commit(chain, false, true)->forms_added, 2);
  EXPECT_NE(f_.store.Get(f_.Keys(chain))[1]->forms[SegmentForm::kCompact], nullptr);
}

TEST_F(SegmentStoreTest, AddFormAddsOnce) {
  const auto chain = Chain(kS);
  const FormPtr compact = MakeForm(chain[0], SegmentForm::kCompact, *f_.budget);
  EXPECT_EQ(f_.store.AddForm(chain[0].key, compact).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  EXPECT_TRUE(*f_.store.AddForm(chain[0].key, compact));
  EXPECT_FALSE(*f_.store.AddForm(chain[0].key, compact));
}

TEST_F(SegmentStoreTest, ABatchThatDoesNotFitTheTreeChangesNothing) {
  const auto chain = Chain(3 * kS + 2);
  ASSERT_TRUE(f_.Commit({chain[0]}, true, false).ok());
  const int64_t used = f_.budget->used();
  const auto refused = [&](std::vector<StoredSegment> batch) {
    const auto result = f_.Commit(std::move(batch), true, false);
    EXPECT_EQ(f_.budget->used(), used);
    EXPECT_EQ(f_.store.Stats().segments, 1);
    return result.status();
  };
  EXPECT_EQ(refused({chain[2]}).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused({chain[2]}).ToString(), HasSubstr(chain[1].key.ToHex()));
  // Children before parents.
  EXPECT_EQ(refused({chain[2], chain[1]}).code(), absl::StatusCode::kFailedPrecondition);
  auto wrong_index = chain[1];
  wrong_index.index = 2;
  EXPECT_THAT(refused({wrong_index}).ToString(), HasSubstr("index"));
  auto first = chain[0];
  first.key = chain[2].key;
  first.index = 1;
  EXPECT_THAT(refused({first}).ToString(), HasSubstr("root"));
  auto behind_tail = chain[1];
  behind_tail.key = Digest{};
  behind_tail.parent = chain[3].key;
  behind_tail.index = 4;
  EXPECT_THAT(refused({chain[1], chain[2], chain[3], behind_tail}).ToString(), HasSubstr("tail"));
  auto foreign = chain[1];
  foreign.context = SmallContext(true, "other tenant");
  EXPECT_THAT(refused({foreign}).ToString(), HasSubstr("namespace"));
}

TEST_F(SegmentStoreTest, ASegmentWithoutFormsMustBeStored) {
  const auto chain = Chain(kS);
  EXPECT_EQ(f_.store.Commit(chain).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  f_.now += absl::Seconds(5);
  EXPECT_TRUE(f_.store.Commit(chain).ok());
  EXPECT_EQ(f_.store.Describe(chain[0].key)->last_use, f_.now);
}

TEST_F(SegmentStoreTest, DeleteIsAllOrNothing) {
  const auto chain = Chain(3 * kS + 1);
  const auto other = Chain(kS);
  ASSERT_TRUE(f_.Commit(chain, true, true).ok());
  ASSERT_TRUE(f_.Commit(other, true, false).ok());
  const auto keys = f_.Keys(chain);
  const std::vector<BlockKey> two = {other[0].key, keys[1]};
  EXPECT_EQ(f_.store.Delete(two, false).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(f_.store.Stats().segments, 5);
  auto pin = f_.store.Pin(std::span(keys).last(1));
  EXPECT_EQ(f_.store.Delete(two, true).status().code(), absl::StatusCode::kFailedPrecondition);
  pin.Release();
  const auto deleted = f_.store.Delete(two, true);
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->segments, 4);
  EXPECT_GT(deleted->bytes, 0);
  EXPECT_EQ(f_.store.Stats().segments, 1);
  EXPECT_EQ(f_.store.Delete(keys, false)->segments, 1);
  EXPECT_EQ(f_.store.Delete(keys, true)->segments, 0);
  EXPECT_EQ(f_.budget->used(), 0);
}

TEST_F(SegmentStoreTest, ParentAndChildCanBeDeletedTogetherInAnyOrder) {
  const auto chain = Chain(2 * kS);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  EXPECT_EQ(f_.store.Delete(std::vector{chain[0].key, chain[1].key, chain[0].key}, false)->segments,
            2);
}

TEST_F(SegmentStoreTest, ADamagedFormIsDroppedAndItsSegmentWithIt) {
  const auto chain = Chain(2 * kS);
  ASSERT_TRUE(f_.Commit(chain, true, true).ok());
  auto leaf = f_.store.Get(f_.Keys(chain))[1];
  f_.store.DropDamaged(chain[1].key, leaf->forms[SegmentForm::kExact]);
  EXPECT_EQ(f_.store.Describe(chain[1].key)->forms[SegmentForm::kExact].bytes, 0);
  f_.store.DropDamaged(chain[1].key, leaf->forms[SegmentForm::kCompact]);
  EXPECT_EQ(f_.store.Describe(chain[1].key).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SegmentStoreTest, ADamagedSegmentInTheMiddleLeavesAHoleThatAPutFills) {
  const auto chain = Chain(3 * kS);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  const auto keys = f_.Keys(chain);
  f_.store.DropDamaged(keys[1], f_.store.Get(keys)[1]->forms[SegmentForm::kExact]);
  EXPECT_EQ(f_.store.Match(keys)->segments.size(), 1);
  ASSERT_TRUE(f_.Commit({chain[1]}, true, false).ok());
  EXPECT_EQ(f_.store.Match(keys)->segments.size(), 3);
}

TEST_F(SegmentStoreTest, DropDamagedSparesABetterForm) {
  const auto chain = Chain(kS);
  const FormPtr old = MakeForm(chain[0], SegmentForm::kExact, *f_.budget);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  f_.store.DropDamaged(chain[0].key, old);
  EXPECT_TRUE(f_.store.Describe(chain[0].key).ok());
}

TEST_F(SegmentStoreTest, ListsParentsBeforeChildrenAndCounts) {
  const auto a = Chain(3 * kS + 7);
  const auto b = MakeChain(SmallContext(false), RandomTokens(rng_, 2 * kS));
  ASSERT_TRUE(f_.Commit(a, true, true).ok());
  ASSERT_TRUE(f_.Commit(b, true, false).ok());
  const auto rows = f_.store.List();
  ASSERT_EQ(rows.size(), 6);
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i].context->root == rows[i - 1].context->root) {
      EXPECT_EQ(rows[i].parent, rows[i - 1].key);
      EXPECT_EQ(rows[i - 1].children, 1);
    }
  }
  EXPECT_EQ(f_.store.List(2).size(), 2);
  const StoreStats stats = f_.store.Stats();
  EXPECT_EQ(stats.segments, 6);
  EXPECT_EQ(stats.tails, 1);
  EXPECT_EQ(stats.forms[SegmentForm::kExact].count, 6);
  EXPECT_EQ(stats.forms[SegmentForm::kCompact].count, 3);
  int64_t exact = 0;
  int64_t compact = 0;
  for (const auto& row : rows) {
    exact += row.forms[SegmentForm::kExact].bytes;
    compact += row.forms[SegmentForm::kCompact].bytes;
  }
  EXPECT_EQ(stats.forms[SegmentForm::kExact].bytes, exact);
  EXPECT_EQ(stats.forms[SegmentForm::kCompact].bytes, compact);
  EXPECT_EQ(f_.budget->used(),
            exact + compact + 6 * kSegmentOverheadBytes + (6 + 3) * 4 * kBufferOverheadBytes);
}

TEST_F(SegmentStoreTest, ManySequencesShareOnePrefix) {
  const auto tokens = RandomTokens(rng_, 2 * kS);
  for (int i = 0; i < 10; ++i) {
    auto longer = tokens;
    for (uint32_t t : RandomTokens(rng_, kS)) longer.push_back(t);
    ASSERT_TRUE(f_.Commit(MakeChain(context_, longer), true, false).ok());
  }
  EXPECT_EQ(f_.store.Stats().segments, 12);
  EXPECT_EQ(f_.store.Describe(MakeChain(context_, tokens)[1].key)->children, 10);
}

}  // namespace
}  // namespace fourierkv
