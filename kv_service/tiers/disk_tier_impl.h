// The disk tier's class. Private to its parts: disk_tier.cc has what reads, disk_tier_writes.cc
// what writes.

#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "kv_service/tiers/disk_index.h"
#include "kv_service/tiers/disk_tier.h"
#include "kv_service/tiers/garbage_collector.h"
#include "kv_service/tiers/recovering_database.h"

namespace fourierkv {

class DiskTier : public SegmentTier {
 public:
  DiskTier(const DiskTierOptions& options, ProfileStore* profiles, NamespaceDirectory* namespaces)
      : limit_bytes_(options.limit_bytes),
        live_limit_(static_cast<int64_t>(static_cast<double>(options.limit_bytes) * kLiveShare)),
        tenant_limit_(options.tenant_limit),
        clock_(options.clock),
        profile_store_(profiles),
        namespaces_(namespaces),
        database_(options.path, options.env, CipherOf(options),
                  [this](DiskDatabase* database) { return ReadContents(database); }),
        collector_(&database_, options.limit_bytes) {}

  // Opens the database and reads what it holds.
  absl::Status Open() {
    std::lock_guard<std::mutex> write_lock(write_mutex_);
    return database_.Open();
  }

  absl::string_view name() const override { return "disk"; }
  Durability durability() const override { return Durability::kDisk; }
  int load_batch() const override { return 1; }
  bool DescribesAtOnce() const override { return true; }

  absl::Status Store(std::span<const StoredSegment> segments, const Patience& patience) override;
  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(
      std::span<const BlockKey> keys, const Patience& patience) override;
  std::vector<absl::StatusOr<FormPtr>> Load(std::span<const TierWant> wants, MemoryBudget& budget,
                                            const Patience& patience) override;
  absl::Status Remove(std::span<const BlockKey> keys, const Patience& patience) override;
  void Touch(std::span<const BlockKey> keys, absl::Time until) override;
  absl::Status StoreProfile(const ProfileLayout& profile, const Patience& patience) override;
  absl::StatusOr<std::vector<std::string>> LoadProfiles(const Patience& patience) override;
  TierStats Stats() const override;
  bool Expire() override;
  void Observe(TierObserver* observer) override { observer_ = observer; }
  bool Walk(size_t& position, size_t most, std::vector<TierSegment>& rows) const override;

 private:
  using Batch = DiskDatabase::Batch;

  static std::shared_ptr<const ValueCipher> CipherOf(const DiskTierOptions& options) {
    if (options.keys.empty()) return nullptr;
    return std::make_shared<const ValueCipher>(options.keys);
  }

  // With null, that there is nothing. Requires write_mutex_.
  absl::Status ReadContents(DiskDatabase* database);
  absl::Status CheckHealth();
  absl::Status CheckOpen() const;
  absl::Status StoreOne(const StoredSegment& segment, const Patience& patience);
  // Evicts until `bytes` more fit for the segment's tenant, and at all, but not `spared`.
  absl::Status MakeRoom(int64_t bytes, const StoredSegment& segment, const BlockKey& spared);
  // Requires write_mutex_ and a segment without children.
  absl::Status EraseSegment(const BlockKey& key, RemovalReason reason);
  // With mutex_ held.
  void TellHeld(const TierSegment& held) const;
  void TellLost(const StoredSegment& segment, RemovalReason reason) const;
  void AddProfile(const ProfileLayout& profile, Batch& batch);
  int64_t HeldBytes(const TierWant& want) const;
  absl::StatusOr<FormPtr> LoadOne(const TierWant& want, MemoryBudget& budget,
                                  const Patience& patience);
  void DropDamaged(const TierWant& want, const absl::Status& why);

  const int64_t limit_bytes_;
  const int64_t live_limit_;
  const std::function<int64_t(absl::string_view)> tenant_limit_;  // may be empty
  const std::function<absl::Time()> clock_;
  TierObserver* observer_ = nullptr;
  ProfileStore* const profile_store_;
  NamespaceDirectory* const namespaces_;

  // Held by whoever changes what is stored, so that index and database change alike; taken before
  // mutex_. Reads and fsyncs go on beside it.
  std::mutex write_mutex_;
  absl::flat_hash_set<Digest> profiles_;  // written; guarded by write_mutex_
  uint64_t sequence_ = 0;                 // guarded by write_mutex_

  mutable std::mutex mutex_;  // never held during I/O; guards what follows
  DiskIndex index_;
  TierStats stats_;

  RecoveringDatabase database_;  // written under write_mutex_
  GarbageCollector collector_;
};

}  // namespace fourierkv
