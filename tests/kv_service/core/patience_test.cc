// Work ends soon after nobody waits for it any more.

#include "kv_service/core/patience.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <thread>

#include "core_fixtures.h"
#include "kv_service/core/latency_histogram.h"
#include "kv_service/core/segment_reader.h"

namespace fourierkv {
namespace {

using absl::StatusCode;

TEST(PatienceTest, EndsAtItsDeadline) {
  const Patience for_ever = absl::InfiniteFuture();
  EXPECT_FALSE(for_ever.over());
  EXPECT_TRUE(for_ever.Check().ok());
  EXPECT_FALSE(for_ever.of_call());
  const Patience past = absl::Now() - absl::Nanoseconds(1);
  EXPECT_TRUE(past.over());
  EXPECT_EQ(past.Check().code(), StatusCode::kDeadlineExceeded);
}

TEST(PatienceTest, EndsWithItsCallAndSoDoShorterOnes) {
  const auto end = std::make_shared<CallEnd>();
  const Patience patience(absl::InfiniteFuture(), end);
  const absl::Time later = absl::Now() + absl::Hours(1);
  const Patience shorter = patience.Until(later);
  EXPECT_TRUE(shorter.of_call());
  EXPECT_EQ(shorter.deadline(), later);
  EXPECT_EQ(shorter.end(), later);
  EXPECT_FALSE(patience.over());
  const absl::Time now = absl::FromUnixNanos(absl::GetCurrentTimeNanos());
  end->Come(now);
  end->Come(now + absl::Seconds(1));  // the first time counts
  EXPECT_TRUE(patience.over());
  EXPECT_TRUE(shorter.over());
  EXPECT_EQ(patience.end(), now);
  EXPECT_EQ(shorter.end(), now);
  EXPECT_EQ(shorter.Check().code(), StatusCode::kCancelled);
  EXPECT_TRUE(patience.cancelled());
}

TEST(LatencyHistogramTest, CountsEveryDurationOnceInTheFirstBucketThatTakesIt) {
  LatencyHistogram histogram;
  histogram.Record(absl::Microseconds(50));
  histogram.Record(absl::Milliseconds(50));
  histogram.Record(absl::Milliseconds(51));
  histogram.Record(absl::Hours(1));
  const auto counts = histogram.counts();
  EXPECT_EQ(counts[0], 1);
  EXPECT_EQ(counts[6], 1);
  EXPECT_EQ(counts[7], 1);
  EXPECT_EQ(counts.back(), 1);
  EXPECT_NEAR(histogram.sum_seconds(), 3600.10105, 1e-6);
}

// Ends the call while it encodes.
class EndingBackend : public ReferenceBackend {
 public:
  absl::Status Encode(KvDtype dtype, std::span<EncodeJob> jobs) override {
    if (end != nullptr) end->Come(absl::Now());
    return ReferenceBackend::Encode(dtype, jobs);
  }
  std::shared_ptr<CallEnd> end;
};

class EndedCallTest : public testing::Test {
 protected:
  std::vector<uint16_t> Values(int64_t index) {
    std::mt19937 rng(static_cast<unsigned>(index));
    return RandomPart(rng, kSmall, kS);
  }
  PartSource Source() {
    return [this](int64_t index, int, Part) { return Values(index); };
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture f_;
  EndingBackend backend_;
  PutManager puts_{&f_.store, &backend_, 3};
  std::shared_ptr<MemoryBudget> scratch_ = MemoryBudget::Create("scratch memory", 1 << 24);
  SegmentReader reader_{&f_.store, &backend_, scratch_};
  std::vector<uint32_t> tokens_ = RandomTokens(rng_, 4 * kS);
};

TEST_F(EndedCallTest, AFetchMakesNothingMoreAndKeepsNothing) {
  ASSERT_TRUE(PutAll(puts_, context_, tokens_, Source()).ok());
  const KeyChain keys = ChainKeys(context_->ns, tokens_);
  std::vector<SegmentWant> wants;
  for (size_t i = 1; i < 4; ++i) wants.push_back({keys.segments[i], {SegmentForm::kDense}});
  auto open = reader_.Open(wants);
  ASSERT_TRUE(open.ok()) << open.status();

  const auto end = std::make_shared<CallEnd>();
  const Patience patience(absl::InfiniteFuture(), end);
  EXPECT_TRUE(reader_.ReadLayer(std::span(*open), 0, patience).ok());
  end->Come(absl::Now());
  EXPECT_EQ(reader_.ReadLayer(std::span(*open), 0, patience).status().code(),
            StatusCode::kCancelled);
  EXPECT_EQ(reader_.Open(wants, patience, patience).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(scratch_->used(), 0);
}

TEST_F(EndedCallTest, AFormThatIsBeingEncodedIsGivenUp) {
  const BlockKey key = ChainKeys(context_->ns, tokens_).segments[1];
  ASSERT_TRUE(f_.Commit(MakeChain(context_, tokens_), /*exact=*/true, /*compact=*/false).ok());
  const int64_t before = f_.budget->used();
  const SegmentWant want{key, {SegmentForm::kCompact}};
  backend_.end = std::make_shared<CallEnd>();
  const Patience patience(absl::InfiniteFuture(), backend_.end);
  EXPECT_EQ(reader_.Open(std::span(&want, 1), patience, patience).status().code(),
            StatusCode::kCancelled);
  EXPECT_EQ(f_.budget->used(), before);
  EXPECT_EQ(f_.store.Describe(key)->forms[SegmentForm::kCompact].bytes, 0);
}

TEST_F(EndedCallTest, APutStoresNothing) {
  PutPlan plan;
  plan.context = context_;
  plan.token_ids = tokens_;
  backend_.end = std::make_shared<CallEnd>();
  const Patience patience(absl::InfiniteFuture(), backend_.end);
  auto session = puts_.Begin(plan, patience, patience);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(SendAll(**session, Source()).ok());
  EXPECT_EQ((*session)->Commit(patience).status().code(), StatusCode::kCancelled);
  session->reset();
  EXPECT_EQ(f_.store.Stats().segments, 0);
  EXPECT_EQ(f_.budget->used(), 0);
  EXPECT_EQ(puts_.running(), 0);
}

}  // namespace
}  // namespace fourierkv
