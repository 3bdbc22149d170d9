// Memory and a tier beneath it as one store, for tests. The tier is one of few lines that can be
// slow or fail.

#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "core_fixtures.h"
#include "kv_service/core/segment_reader.h"
#include "kv_service/core/tiered_store.h"

namespace fourierkv {

class FakeTier : public SegmentTier {
 public:
  absl::string_view name() const override { return "fake"; }
  Durability durability() const override { return Durability::kDisk; }
  int load_batch() const override { return 1; }

  absl::Status Store(std::span<const StoredSegment> segments, const Patience&) override {
    if (absl::Status s = Behave(); !s.ok()) return s;
    std::lock_guard<std::mutex> lock(mutex_);
    for (const StoredSegment& segment : segments) {
      if (segment.parent != segment.context->root && !held_.contains(segment.parent)) {
        return absl::FailedPreconditionError("no parent");
      }
      if (!segment.HoldsAnything() && !held_.contains(segment.key)) {
        return absl::FailedPreconditionError("not held");
      }
      StoredSegment& held = held_.try_emplace(segment.key, segment).first->second;
      for (const SegmentForm form : kHeldForms) {
        if (held.forms[form] == nullptr) held.forms[form] = segment.forms[form];
      }
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(std::span<const BlockKey> keys,
                                                                   const Patience& p) override {
    if (absl::Status s = Behave(); !s.ok()) return s;
    std::lock_guard<std::mutex> lock(mutex_);
    described_until_ = p.deadline();
    std::vector<std::optional<TierSegment>> result(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto it = held_.find(keys[i]);
      if (it == held_.end()) continue;
      result[i] = TierSegment{.segment = it->second};
      result[i]->segment.forms = {};
      for (const SegmentForm form : kHeldForms) {
        if (const FormPtr& held = it->second.forms[form]; held != nullptr) {
          result[i]->forms[form] = {held->bytes(), held->mean_relative_error(),
                                    held->max_relative_error()};
        }
      }
    }
    return result;
  }
  std::vector<absl::StatusOr<FormPtr>> Load(std::span<const TierWant> wants, MemoryBudget&,
                                            const Patience&) override {
    ++loads;
    while (stuck_loading) absl::SleepFor(absl::Milliseconds(1));
    std::vector<absl::StatusOr<FormPtr>> result;
    for (const TierWant& want : wants) {
      if (absl::Status s = Behave(); !s.ok()) {
        result.emplace_back(s);
        continue;
      }
      std::lock_guard<std::mutex> lock(mutex_);
      const auto it = held_.find(want.segment->key);
      if (it == held_.end() || it->second.forms[want.form] == nullptr) {
        result.emplace_back(absl::NotFoundError("not held"));
      } else if (damaged) {
        it->second.forms[want.form] = nullptr;
        result.emplace_back(absl::DataLossError("damaged"));
      } else {
        result.emplace_back(it->second.forms[want.form]);
      }
    }
    while (stuck_with_loaded) absl::SleepFor(absl::Milliseconds(1));
    return result;
  }
  absl::Status Remove(std::span<const BlockKey> keys, const Patience&) override {
    ++removals;
    while (stuck_removing) absl::SleepFor(absl::Milliseconds(1));
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<BlockKey> doomed(keys.begin(), keys.end());
    for (size_t i = 0; i < doomed.size(); ++i) {
      held_.erase(doomed[i]);
      for (const auto& [key, segment] : held_) {
        if (segment.parent == doomed[i]) doomed.push_back(key);
      }
    }
    return absl::OkStatus();
  }
  void Touch(std::span<const BlockKey> keys, absl::Time until) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const BlockKey& key : keys) {
      absl::Time& wished = wished_.try_emplace(key, absl::InfinitePast()).first->second;
      wished = std::max(wished, until);
    }
  }
  absl::Status StoreProfile(const ProfileLayout&, const Patience&) override { return Behave(); }
  absl::StatusOr<std::vector<std::string>> LoadProfiles(const Patience&) override {
    return std::vector<std::string>();
  }
  TierStats Stats() const override { return {}; }

  bool Holds(const BlockKey& key) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return held_.contains(key);
  }

  // How long the last call of Describe could take.
  absl::Time described_until() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return described_until_;
  }

  // Until when somebody asked to keep the key.
  absl::Time WishedFor(const BlockKey& key) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = wished_.find(key);
    return it == wished_.end() ? absl::InfinitePast() : it->second;
  }

  std::atomic<bool> failing{false};
  std::atomic<bool> damaged{false};
  std::atomic<bool> stuck{false};  // until it is not
  std::atomic<bool> stuck_loading{false};
  std::atomic<bool> stuck_with_loaded{false};  // what was there when it was asked
  std::atomic<bool> stuck_removing{false};
  std::atomic<int> loads{0};
  std::atomic<int> removals{0};

 private:
  absl::Status Behave() {
    while (stuck) absl::SleepFor(absl::Milliseconds(1));
    return failing ? absl::UnavailableError("failing") : absl::OkStatus();
  }

  mutable std::mutex mutex_;
  std::map<BlockKey, StoredSegment> held_;
  std::map<BlockKey, absl::Time> wished_;
  absl::Time described_until_;
};

class TieredStoreTest : public testing::Test {
 protected:
  ~TieredStoreTest() override {
    tier_->stuck = tier_->stuck_loading = tier_->stuck_with_loaded = tier_->stuck_removing = false;
  }

  // A put of `tokens` with EXACT of everything and COMPACT where there is.
  absl::StatusOr<PutStats> Put(const std::vector<uint32_t>& tokens, Durability durability,
                               absl::Time deadline = absl::InfiniteFuture()) {
    PutPlan plan;
    plan.context = context_;
    plan.token_ids = tokens;
    plan.durability = durability;
    auto session = puts_.Begin(plan, deadline);
    if (!session.ok()) return session.status();
    needed_ = (*session)->needed_segments();
    const absl::Status sent = SendAll(**session, [&](int64_t index, int layer, Part part) {
      const int tokens_here =
          static_cast<int>(std::min<size_t>(kS, tokens.size() - static_cast<size_t>(index) * kS));
      std::mt19937 rng(static_cast<unsigned>(index * 100 + layer * 2 + static_cast<int>(part)));
      return RandomPart(rng, kSmall, tokens_here);
    });
    if (!sent.ok()) return sent;
    return (*session)->Commit(deadline);
  }
  std::vector<BlockKey> Keys(const std::vector<uint32_t>& tokens) {
    return ChainKeys(context_->ns, tokens).segments;
  }
  void EvictAll() {
    while (store_.store.Evict(int64_t{1} << 40) > 0) continue;
  }
  std::vector<OpenSegment> Open(std::span<const BlockKey> keys, std::vector<SegmentForm> forms,
                                absl::Time deadline = absl::InfiniteFuture()) {
    std::vector<SegmentWant> wants;
    for (const BlockKey& key : keys) wants.push_back({key, forms});
    auto open = reader_.Open(wants, deadline);
    EXPECT_TRUE(open.ok()) << open.status();
    return *std::move(open);
  }

  std::mt19937 rng_{std::random_device()()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture store_;
  ReferenceBackend backend_;
  std::shared_ptr<FakeTier> tier_ = std::make_shared<FakeTier>();
  TieredStore tiers_{&store_.store, {tier_}};
  PutManager puts_{&store_.store, &backend_, 16, &tiers_};
  SegmentReader reader_{&store_.store, &backend_, MemoryBudget::Create("scratch", 1 << 24), nullptr,
                        &tiers_};
  std::vector<uint32_t> tokens_ = RandomTokens(rng_, 4 * kS + 5);
  std::vector<BlockKey> keys_ = Keys(tokens_);
  int64_t needed_ = 0;
};

}  // namespace fourierkv
