#include "tests/kv_service/tiers/redis_fixture.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/time/clock.h"

namespace fourierkv {

absl::Time SoonEnough() { return absl::Now() + absl::Seconds(20); }

RedisReplica::RedisReplica(RedisClientOptions client, int wait_replicas) {
  RedisTierOptions options;
  options.client = std::move(client);
  options.chunk_bytes = kTestChunkBytes;
  options.wait_replicas = wait_replicas;
  auto tier = OpenRedisTier(options, &profiles_, &namespaces_);
  if (!tier.ok()) std::abort();
  tier_ = *std::move(tier);
}

absl::StatusOr<FormPtr> RedisReplica::Load(const StoredSegment& segment, SegmentForm form,
                                           absl::Time deadline) {
  const TierWant want{.segment = &segment, .form = form};
  return std::move(tier_->Load(std::span(&want, 1), *budget_, deadline).front());
}

int RedisReplica::Described(std::span<const StoredSegment> chain) {
  const auto described = tier_->Describe(KeysOfChain(chain), SoonEnough());
  if (!described.ok()) return -1;
  int forms = 0;
  for (const auto& segment : *described) {
    for (const SegmentForm form : kHeldForms) {
      if (segment.has_value() && segment->forms[form].bytes > 0) ++forms;
    }
  }
  return forms;
}

testing::AssertionResult RedisReplica::HoldsAll(std::span<const StoredSegment> chain) {
  for (const StoredSegment& segment : chain) {
    for (const SegmentForm form : kHeldForms) {
      if (segment.forms[form] == nullptr) continue;
      const auto loaded = Load(segment, form, SoonEnough());
      if (!loaded.ok()) return testing::AssertionFailure() << loaded.status();
      if (!EqualForms(**loaded, *segment.forms[form])) {
        return testing::AssertionFailure() << "other bytes";
      }
    }
  }
  return testing::AssertionSuccess();
}

std::vector<StoredSegment> RedisTestChain(std::mt19937& rng, int segments, MemoryBudget& budget,
                                          int tail_tokens) {
  static const auto context = SmallContext(true, "salt");
  auto chain = MakeChain(context, RandomTokens(rng, int64_t{segments} * kS + tail_tokens));
  for (StoredSegment& segment : chain) {
    const float mark = 0.001f * static_cast<float>(rng() % 1000);
    segment.forms[SegmentForm::kExact] = MakeForm(segment, SegmentForm::kExact, budget);
    if (segment.tail) continue;
    segment.forms[SegmentForm::kCompact] = MakeForm(segment, SegmentForm::kCompact, budget, mark);
  }
  return chain;
}

int FormsOf(std::span<const StoredSegment> chain) {
  int forms = 0;
  for (const StoredSegment& segment : chain) {
    for (const SegmentForm form : kHeldForms) forms += segment.forms[form] != nullptr ? 1 : 0;
  }
  return forms;
}

std::vector<BlockKey> KeysOfChain(std::span<const StoredSegment> chain) {
  std::vector<BlockKey> keys;
  for (const StoredSegment& segment : chain) keys.push_back(segment.key);
  return keys;
}

bool EqualForms(const FormBlobs& a, const FormBlobs& b) {
  if (a.form() != b.form() || a.layers() != b.layers()) return false;
  for (int layer = 0; layer < a.layers(); ++layer) {
    for (const Part part : kParts) {
      const auto x = std::as_const(*a.blob(layer, part)).bytes();
      const auto y = std::as_const(*b.blob(layer, part)).bytes();
      if (!std::equal(x.begin(), x.end(), y.begin(), y.end())) return false;
    }
  }
  return true;
}

}  // namespace fourierkv
