// Many threads on one store, for the sanitizers and for invariants that races would break.

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "core_fixtures.h"
#include "kv_service/core/segment_reader.h"

namespace fourierkv {
namespace {

constexpr int kThreads = 4;

void InThreads(int n, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < n; ++t) threads.emplace_back(body, t);
  for (std::thread& thread : threads) thread.join();
}

// The values of a part follow from what it is, so that any reader can check them.
std::vector<uint16_t> PartOf(const std::vector<uint32_t>& tokens, int64_t index, int layer,
                             Part part) {
  const int count = static_cast<int>(std::min<int64_t>(kS, tokens.size() - index * kS));
  std::mt19937 rng(tokens[index * kS] + layer * 2 + static_cast<int>(part));
  return RandomPart(rng, kSmall, count);
}

TEST(ConcurrencyTest, PutsReadsLeasesAndEvictionsDoNotDisturbEachOther) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  const auto context = SmallContext();
  std::vector<std::vector<uint32_t>> sequences;
  for (int i = 0; i < 6; ++i) {
    auto tokens =
        sequences.empty() || i % 2 == 0
            ? std::vector<uint32_t>()
            : std::vector<uint32_t>(sequences.back().begin(), sequences.back().begin() + 2 * kS);
    for (uint32_t t : RandomTokens(rng, 3 * kS + i)) tokens.push_back(t);
    sequences.push_back(tokens);
  }
  // Room for about half of it: eviction works all the time.
  auto budget = MemoryBudget::Create("segment memory", 12 * kSmall.DenseBytes(kS));
  auto scratch = MemoryBudget::Create("scratch memory", int64_t{64} << 20);
  auto metrics = std::make_shared<StoreMetrics>();
  {
    SegmentStore store(budget, metrics);
    ReferenceBackend backend;
    PutManager puts(&store, &backend, kThreads);
    SegmentReader reader(&store, &backend, scratch);
    std::atomic<int> committed{0};
    InThreads(kThreads, [&](int t) {
      std::mt19937 local(seed + t);
      for (int i = 0; i < 40; ++i) {
        const auto& tokens = sequences[local() % sequences.size()];
        const auto chain = MakeChain(context, tokens);
        std::vector<BlockKey> keys;
        for (const auto& segment : chain) keys.push_back(segment.key);
        switch (local() % 4) {
          case 0: {
            const auto source = [&](int64_t index, int layer, Part part) {
              return PartOf(tokens, index, layer, part);
            };
            const auto stats = PutAll(puts, context, tokens, source, local() % 5);
            if (stats.ok()) ++committed;
            EXPECT_TRUE(stats.ok() || absl::IsResourceExhausted(stats.status())) << stats.status();
            break;
          }
          case 1: {
            const auto match = store.Match(keys, std::nullopt, absl::Seconds(60));
            ASSERT_TRUE(match.ok());
            if (!match->lease.has_value()) break;
            // What is leased can be read, whatever the others do.
            std::vector<SegmentWant> wants;
            for (const auto& segment : match->segments) {
              wants.push_back({segment.key, {SegmentForm::kExact, SegmentForm::kCompact}});
            }
            auto open = reader.Open(wants);
            ASSERT_TRUE(open.ok());
            for (int layer = 0; layer < kSmall.layers; ++layer) {
              const auto read = reader.ReadLayer(std::span(*open), layer);
              ASSERT_TRUE(read.ok());
              for (size_t s = 0; s < read->size(); ++s) {
                ASSERT_EQ((*read)[s].missing, MissingReason::kNone);
                if ((*open)[s].form != SegmentForm::kExact) continue;
                const auto values = PartOf(tokens, s, layer, Part::kV);
                const auto payload = BlobPayload((*read)[s].v->bytes());
                ASSERT_TRUE(std::equal(payload.begin(), payload.end(), AsBytes(values).begin()));
              }
            }
            EXPECT_TRUE(store.Release(match->lease->id).ok());
            break;
          }
          case 2: {
            const SegmentWant wants[] = {{keys[1], {SegmentForm::kCompact}},
                                         {keys[2], {SegmentForm::kDense}}};
            auto open = reader.Open(wants);
            ASSERT_TRUE(open.ok()) << open.status();
            ASSERT_TRUE(reader.ReadLayer(std::span(*open), 1).ok());
            break;
          }
          case 3:
            store.Delete(std::vector{keys.back()}, true).status().IgnoreError();
            store.List(10);
            store.Stats();
            break;
        }
      }
    });
    EXPECT_GT(committed, 0);
    EXPECT_EQ(metrics->corrupt_blobs, 0);
    EXPECT_LE(budget->peak(), budget->limit());
    EXPECT_EQ(puts.running(), 0);
    for (const auto& row : store.List()) EXPECT_EQ(row.holds, 0);
    store.Evict(int64_t{1} << 40);
    EXPECT_EQ(store.Stats().segments, 0);
  }
  EXPECT_EQ(budget->used(), 0);
  EXPECT_EQ(scratch->used(), 0);
}

TEST(ConcurrencyTest, ManyReadersOfOneSegmentMakeOneCompactForm) {
  std::mt19937 rng(1);
  const auto context = SmallContext();
  StoreFixture f;
  ReferenceBackend backend;
  PutManager puts(&f.store, &backend, 1);
  SegmentReader reader(&f.store, &backend, f.budget);
  const auto tokens = RandomTokens(rng, kS);
  ASSERT_TRUE(PutAll(puts, context, tokens, [&](int64_t index, int layer, Part part) {
                return PartOf(tokens, index, layer, part);
              }).ok());
  const BlockKey key = MakeChain(context, tokens)[0].key;
  InThreads(kThreads, [&](int) { EXPECT_TRUE(reader.EnsureCompact(key).ok()); });
  EXPECT_EQ(f.store.Stats().forms[SegmentForm::kCompact].count, 1);
  f.store.Evict(int64_t{1} << 40);
  EXPECT_EQ(f.budget->used(), 0);
}

}  // namespace
}  // namespace fourierkv
