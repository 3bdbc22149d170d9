// The store against a model that finds everything by looking at everything.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core_fixtures.h"
#include "kv_service/core/eviction_index.h"
#include "kv_service/core/segment_store.h"

namespace fourierkv {
namespace {

struct ModelSegment {
  StoredSegment segment;  // without forms
  int64_t exact = 0;      // bytes
  int64_t compact = 0;
  int64_t last_use = 0;
  absl::Time used_at;
  int64_t uses = 0;
  int64_t rank = 0;
  int64_t born = 0;
  int holds = 0;
};

class Model {
 public:
  void Touch(const BlockKey& key) {
    for (auto it = all.find(key); it != all.end(); it = all.find(it->second.segment.parent)) {
      ModelSegment& s = it->second;
      const auto second = [](absl::Time t) { return absl::ToUnixSeconds(t); };
      if (s.uses == 0 || second(s.used_at) != second(now)) {
        s.uses = std::min<int64_t>(s.uses + 1, EvictionIndex::kMaxUses);
      }
      s.rank = age + s.uses;
      s.used_at = now;
      s.last_use = tick;
    }
  }

  bool HasChild(const BlockKey& key, bool full_only) const {
    return std::any_of(all.begin(), all.end(), [&](const auto& other) {
      return other.second.segment.parent == key && !(full_only && other.second.segment.tail);
    });
  }

  void Commit(const StoredSegment& s, int64_t exact, int64_t compact) {
    auto [it, fresh] = all.try_emplace(s.key);
    if (fresh) {
      it->second.segment = s;
      it->second.born = births++;
    }
    it->second.exact = std::max(it->second.exact, exact);
    it->second.compact = std::max(it->second.compact, compact);
    Touch(s.key);
  }

  void Evict(int64_t bytes) {
    for (int64_t freed = 0; freed < bytes;) {
      ModelSegment* exact = nullptr;
      ModelSegment* whole = nullptr;
      const auto older = [](const ModelSegment& a, const ModelSegment* b) {
        return b == nullptr || std::pair(a.last_use, a.born) < std::pair(b->last_use, b->born);
      };
      for (auto& [key, s] : all) {
        if (s.holds > 0) continue;
        if (s.exact > 0 && s.compact > 0 && s.segment.index > 0 && HasChild(key, true) &&
            older(s, exact)) {
          exact = &s;
        }
        const auto lower = [](const ModelSegment& a, const ModelSegment* b) {
          return b == nullptr ||
                 std::tuple(a.rank, a.last_use, a.born) < std::tuple(b->rank, b->last_use, b->born);
        };
        if (!HasChild(key, false) && lower(s, whole)) whole = &s;
      }
      if (exact != nullptr) {
        freed += std::exchange(exact->exact, 0);
      } else if (whole != nullptr) {
        freed += whole->exact + whole->compact + kSegmentOverheadBytes;
        age = std::max(age, whole->rank);
        all.erase(whole->segment.key);
      } else {
        return;
      }
    }
  }

  std::map<BlockKey, ModelSegment> all;
  int64_t tick = 0;
  int64_t births = 0;
  int64_t age = 0;
  absl::Time now;
};

class ModelTest : public testing::Test {
 protected:
  void ExpectSame() {
    const auto rows = f_.store.List();
    ASSERT_EQ(rows.size(), model_.all.size());
    for (const SegmentSummary& row : rows) {
      const auto it = model_.all.find(row.key);
      ASSERT_NE(it, model_.all.end());
      ASSERT_EQ(row.forms[SegmentForm::kExact].bytes, it->second.exact);
      ASSERT_EQ(row.forms[SegmentForm::kCompact].bytes, it->second.compact);
      ASSERT_EQ(row.holds, it->second.holds);
      // Never a child without its parent.
      ASSERT_TRUE(row.index == 0 || model_.all.contains(row.parent));
    }
  }

  StoreFixture f_;
  Model model_;
};

TEST_F(ModelTest, RandomOperationsAgree) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  const auto context = SmallContext();
  const int64_t exact_bytes = kSmall.DenseBytes(kS) + 4 * kBlobHeaderBytes;
  const int64_t compact_bytes = context->layout->SegmentPayloadBytes() + 4 * kBlobHeaderBytes;
  // A few sequences that share prefixes of several lengths, some with tails.
  std::vector<std::vector<StoredSegment>> chains;
  std::vector<uint32_t> tokens;
  for (int i = 0; i < 12; ++i) {
    tokens.resize(tokens.empty() ? 0 : rng() % tokens.size() / kS * kS);
    for (uint32_t t : RandomTokens(rng, (1 + rng() % 4) * kS + (rng() % 2) * 3)) {
      tokens.push_back(t);
    }
    chains.push_back(MakeChain(context, tokens));
  }
  std::map<uint64_t, std::pair<std::vector<BlockKey>, absl::Time>> leases;
  const auto expire = [&] {
    std::erase_if(leases, [&](const auto& lease) {
      if (lease.second.second > f_.now) return false;
      for (const BlockKey& key : lease.second.first) --model_.all.at(key).holds;
      return true;
    });
  };
  for (int step = 0; step < 3000; ++step) {
    const auto& chain = chains[rng() % chains.size()];
    const size_t n = 1 + rng() % chain.size();
    const std::vector<StoredSegment> some(chain.begin(), chain.begin() + n);
    const std::vector<BlockKey> keys = f_.Keys(some);
    ++model_.tick;
    model_.now = f_.now;
    switch (rng() % 8) {
      case 0:
      case 1: {
        const bool exact = some.back().tail || rng() % 2 == 0;
        const bool compact = !exact || rng() % 2 == 0;
        ASSERT_TRUE(f_.Commit(some, exact, compact).ok());
        for (const StoredSegment& s : some) {
          const int64_t tail_bytes = kSmall.DenseBytes(s.tokens) + 4 * kBlobHeaderBytes;
          model_.Commit(s, exact ? (s.tail ? tail_bytes : exact_bytes) : 0,
                        compact && !s.tail ? compact_bytes : 0);
        }
        break;
      }
      case 2: {
        const auto match = f_.store.Match(keys);
        size_t matched = 0;
        while (matched < n && model_.all.contains(keys[matched])) model_.Touch(keys[matched++]);
        ASSERT_EQ(match->segments.size(), matched);
        break;
      }
      case 3: {
        const BlockKey key = keys[rng() % n];
        ASSERT_EQ(f_.store.Get(std::span(&key, 1))[0].has_value(), model_.all.contains(key));
        model_.Touch(key);
        break;
      }
      case 4: {
        const auto lease = f_.store.AcquireLease(keys, absl::Seconds(1 + rng() % 20));
        expire();
        if (!lease.ok()) break;
        for (const BlockKey& key : keys) ++model_.all.at(key).holds;
        leases[lease->id] = {keys, lease->expiry};
        break;
      }
      case 5: {
        f_.now += absl::Seconds(rng() % 10);
        if (!leases.empty() && rng() % 2 == 0) {
          const auto lease = leases.begin();
          const bool live = lease->second.second > f_.now;
          ASSERT_EQ(f_.store.Release(lease->first).ok(), live);
          if (live) {
            for (const BlockKey& key : lease->second.first) --model_.all.at(key).holds;
            leases.erase(lease);
          }
        }
        f_.store.Expire();
        expire();
        break;
      }
      case 6: {
        const int64_t bytes = rng() % (3 * exact_bytes);
        f_.store.Evict(bytes);
        expire();
        model_.Evict(bytes);
        break;
      }
      case 7: {
        if (rng() % 4 != 0) break;
        const BlockKey key = keys.back();
        const auto deleted = f_.store.Delete(std::span(&key, 1), true);
        expire();
        std::set<BlockKey> doomed = {key};
        for (size_t before = 0; before != doomed.size();) {
          before = doomed.size();
          for (const auto& [k, s] : model_.all) {
            if (doomed.contains(s.segment.parent)) doomed.insert(k);
          }
        }
        const bool held = std::any_of(doomed.begin(), doomed.end(), [&](const BlockKey& k) {
          return model_.all.contains(k) && model_.all.at(k).holds > 0;
        });
        ASSERT_EQ(deleted.ok(), !held);
        if (!held) std::erase_if(model_.all, [&](auto& s) { return doomed.contains(s.first); });
        break;
      }
    }
    ExpectSame();
    if (HasFatalFailure()) return;
  }
  f_.now += absl::Hours(1);
  f_.store.Evict(int64_t{1} << 40);
  EXPECT_EQ(f_.budget->used(), 0);
}

}  // namespace
}  // namespace fourierkv
