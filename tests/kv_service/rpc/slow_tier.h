// A tier in memory that takes its time, and stops when nobody waits any more.

#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kv_service/core/segment_tier.h"

namespace fourierkv {

// Thread safe. Keeps copies, none of them charged to a budget.
class SlowTier : public SegmentTier {
 public:
  // Each call takes a random time up to this.
  explicit SlowTier(absl::Duration longest) : longest_(longest) {}

  // From now on it takes its time and keeps nothing new, though it says that it did.
  void Freeze() { frozen_ = true; }

  absl::string_view name() const override { return "slow"; }
  Durability durability() const override { return Durability::kDisk; }
  int load_batch() const override { return 1; }

  absl::Status Store(std::span<const StoredSegment> segments, const Patience& patience) override {
    for (const StoredSegment& segment : segments) {
      if (absl::Status s = Work(patience); !s.ok()) return s;
      if (!frozen_) Keep(segment);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(
      std::span<const BlockKey> keys, const Patience& patience) override {
    if (absl::Status s = Work(patience); !s.ok()) return s;
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::optional<TierSegment>> result(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto it = held_.find(keys[i]);
      if (it == held_.end() || it->second.described.segment.expires <= absl::Now()) continue;
      result[i] = it->second.described;
    }
    return result;
  }

  std::vector<absl::StatusOr<FormPtr>> Load(std::span<const TierWant> wants, MemoryBudget& budget,
                                            const Patience& patience) override {
    std::vector<absl::StatusOr<FormPtr>> result;
    for (const TierWant& want : wants) result.push_back(LoadOne(want, budget, patience));
    return result;
  }

  absl::Status Remove(std::span<const BlockKey> keys, const Patience&) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const BlockKey& key : keys) held_.erase(key);
    return absl::OkStatus();
  }
  void Touch(std::span<const BlockKey>, absl::Time) override {}
  absl::Status StoreProfile(const ProfileLayout&, const Patience&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<std::string>> LoadProfiles(const Patience&) override {
    return std::vector<std::string>();
  }
  TierStats Stats() const override { return {}; }

 private:
  struct Held {
    TierSegment described;
    std::map<SegmentForm, std::vector<std::pair<std::string, float>>> blobs;  // and their errors
  };

  absl::Status Work(const Patience& patience) {
    if (!frozen_) return absl::OkStatus();
    thread_local std::mt19937 random{std::random_device{}()};
    const absl::Time done =
        absl::Now() + longest_ * std::uniform_real_distribution<double>(0, 1)(random);
    while (absl::Now() < done) {
      if (absl::Status s = patience.Check(); !s.ok()) return s;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return absl::OkStatus();
  }

  void Keep(const StoredSegment& segment) {
    std::lock_guard<std::mutex> lock(mutex_);
    Held& held = held_[segment.key];
    for (const SegmentForm form : kHeldForms) {
      const FormPtr& from = segment.forms[form];
      if (from == nullptr || held.blobs.contains(form)) continue;
      held.described.forms[form] = {from->bytes(), from->mean_relative_error(),
                                    from->max_relative_error()};
      for (int layer = 0; layer < from->layers(); ++layer) {
        for (const Part part : kParts) {
          const auto bytes = from->blob(layer, part)->bytes();
          held.blobs[form].emplace_back(
              std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
              from->max_relative_error());
        }
      }
    }
    const absl::Time before = held.described.segment.context != nullptr
                                  ? held.described.segment.expires
                                  : absl::InfinitePast();
    held.described.segment = segment;
    held.described.segment.forms = {};
    held.described.segment.expires = std::max(before, segment.expires);
  }

  absl::StatusOr<FormPtr> LoadOne(const TierWant& want, MemoryBudget& budget,
                                  const Patience& patience) {
    if (absl::Status s = Work(patience); !s.ok()) return s;
    std::vector<std::pair<std::string, float>> blobs;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto it = held_.find(want.segment->key);
      if (it == held_.end() || !it->second.blobs.contains(want.form)) {
        return absl::NotFoundError("not held");
      }
      blobs = it->second.blobs.at(want.form);
    }
    std::vector<FormPart> parts;
    for (const auto& [bytes, error] : blobs) {
      if (absl::Status s = patience.Check(); !s.ok()) return s;
      auto blob = BlobBuffer::Allocate(budget, static_cast<int64_t>(bytes.size()));
      if (!blob.ok()) return blob.status();
      std::copy_n(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(),
                  (*blob)->bytes().begin());
      parts.push_back({*std::move(blob), error});
    }
    return std::make_shared<const FormBlobs>(want.form, std::move(parts));
  }

  const absl::Duration longest_;
  std::atomic<bool> frozen_{false};
  std::mutex mutex_;  // guards what follows
  std::map<BlockKey, Held> held_;
};

}  // namespace fourierkv
