// One replica's view of a Redis tier.

#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/tiers/redis_tier.h"
#include "tests/kv_service/core/core_fixtures.h"
#include "tests/kv_service/redis/redis_servers.h"

namespace fourierkv {

// Every record has several chunks of that size.
inline constexpr int64_t kTestChunkBytes = 5000;

class RedisReplica {
 public:
  explicit RedisReplica(RedisClientOptions client, int wait_replicas = 0);

  SegmentTier& tier() { return *tier_; }
  ProfileStore& profiles() { return profiles_; }
  MemoryBudget& budget() { return *budget_; }

  absl::StatusOr<FormPtr> Load(const StoredSegment& segment, SegmentForm form, absl::Time deadline);
  // How many of the chain's forms Describe tells of. -1 if it fails.
  int Described(std::span<const StoredSegment> chain);
  // Whether every form of the chain is given back as it is.
  testing::AssertionResult HoldsAll(std::span<const StoredSegment> chain);

 private:
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("test", int64_t{64} << 20);
  ProfileStore profiles_;
  NamespaceDirectory namespaces_{&profiles_};
  std::unique_ptr<SegmentTier> tier_;
};

// `segments` segments of one sequence, all EXACT, full ones COMPACT, too.
std::vector<StoredSegment> RedisTestChain(std::mt19937& rng, int segments, MemoryBudget& budget,
                                          int tail_tokens = 0);

int FormsOf(std::span<const StoredSegment> chain);
std::vector<BlockKey> KeysOfChain(std::span<const StoredSegment> chain);
bool EqualForms(const FormBlobs& a, const FormBlobs& b);

absl::Time SoonEnough();

}  // namespace fourierkv
