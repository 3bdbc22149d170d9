#include "clients/loadtest/workload.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "clients/loadtest/random.h"
#include "clients/loadtest/zipf.h"

namespace fourierkv::loadtest {
namespace {

TEST(ZipfTest, EveryRankHasTheShareThatTheFormulaSays) {
  for (const double s : {0.0, 0.5, 0.99, 1.0, 2.0}) {
    for (const uint32_t n : {1u, 2u, 7u, 1000u}) {
      SCOPED_TRACE(absl::StrCat("s ", s, " n ", n));
      const ZipfSampler zipf(n, s);
      double sum = 0;
      for (uint32_t k = 1; k <= n; ++k) sum += std::pow(k, -s);
      // Where one rank ends and the next begins.
      double edge = 0;
      for (uint32_t rank = 0; rank < n; ++rank) {
        const double share = std::pow(rank + 1, -s) / sum;
        EXPECT_EQ(zipf.Rank(edge + 1e-3 * share), rank);
        EXPECT_EQ(zipf.Rank(edge + (1 - 1e-3) * share), rank);
        edge += share;
      }
      EXPECT_EQ(zipf.Rank(0), 0);
      EXPECT_EQ(zipf.Rank(std::nextafter(1.0, 0.0)), n - 1);
    }
  }
}

TEST(ZipfTest, SamplesHaveTheirShares) {
  constexpr uint32_t kN = 50;
  constexpr int kSamples = 200000;
  const ZipfSampler zipf(kN, 0.99);
  std::vector<int> counts(kN);
  for (int i = 0; i < kSamples; ++i) ++counts[zipf.Rank(ToUnit(Mix64(11, i)))];
  double sum = 0;
  for (uint32_t k = 1; k <= kN; ++k) sum += std::pow(k, -0.99);
  double chi_square = 0;
  for (uint32_t rank = 0; rank < kN; ++rank) {
    const double expected = kSamples * std::pow(rank + 1, -0.99) / sum;
    chi_square += std::pow(counts[rank] - expected, 2) / expected;
  }
  EXPECT_LT(chi_square, 85.4);  // 99.9% of chi-square with 49 degrees of freedom
}

WorkloadOptions Options() {
  return {
      .mix = {.put = 1, .get = 3, .match = 6}, .population = 100, .zipf = 0.9, .new_puts = 0.25};
}

TEST(WorkloadTest, OperationsComeInTheWeightsOfTheMix) {
  const Workload workload(Options());
  constexpr int kCount = 100000;
  int kinds[3] = {};
  int fresh = 0;
  for (int i = 0; i < kCount; ++i) {
    const PlannedOp op = workload.Plan(i);
    ++kinds[static_cast<int>(op.kind)];
    fresh += op.fresh ? 1 : 0;
    EXPECT_LT(op.slot, 100u);
    EXPECT_TRUE(!op.fresh || op.kind == OpKind::kPut);
  }
  const auto near = [](int count, double p) {
    EXPECT_NEAR(count, kCount * p, 4 * std::sqrt(kCount * p * (1 - p)));
  };
  near(kinds[0], 0.1);
  near(kinds[1], 0.3);
  near(kinds[2], 0.6);
  near(fresh, 0.025);
}

TEST(WorkloadTest, AWeightOfZeroNeverComes) {
  for (const Mix& mix : {Mix{0, 1, 0}, Mix{1, 0, 0}, Mix{0, 0, 1}, Mix{1, 0, 1}}) {
    WorkloadOptions options = Options();
    options.mix = mix;
    const Workload workload(options);
    for (int i = 0; i < 10000; ++i) {
      const OpKind kind = workload.Plan(i).kind;
      EXPECT_GT(kind == OpKind::kPut ? mix.put : kind == OpKind::kGet ? mix.get : mix.match, 0);
    }
  }
}

TEST(WorkloadTest, EveryRankHasASlotOfItsOwn) {
  for (const uint32_t population : {1u, 2u, 3u, 10u, 97u, 1024u}) {
    WorkloadOptions options = Options();
    options.population = population;
    const Workload workload(options);
    std::set<uint32_t> slots;
    for (uint32_t rank = 0; rank < population; ++rank) slots.insert(workload.SlotOfRank(rank));
    EXPECT_EQ(slots.size(), population);
    EXPECT_EQ(*slots.rbegin(), population - 1);
  }
}

TEST(WorkloadTest, PlansDependOnSeedAndNumberAlone) {
  const Workload a(Options());
  const Workload b(Options());
  WorkloadOptions other = Options();
  other.seed = 2;
  const Workload c(other);
  int differ = 0;
  for (int i = 999; i >= 0; --i) {
    EXPECT_EQ(a.Plan(i).slot, b.Plan(i).slot);
    EXPECT_EQ(a.Plan(i).kind, b.Plan(i).kind);
    differ += a.Plan(i).slot != c.Plan(i).slot ? 1 : 0;
  }
  EXPECT_GT(differ, 500);
}

}  // namespace
}  // namespace fourierkv::loadtest
