#include "kv_service/tiers/disk_tier.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/tiers/disk_contents.h"
#include "kv_service/tiers/disk_forms.h"
#include "kv_service/tiers/garbage_collector.h"
#include "kv_service/tiers/recovering_database.h"

namespace fourierkv {
namespace {

constexpr int64_t kSmallestLimit = int64_t{1} << 20;

// What of `segment` the tier has not: its forms, but only one of exact data.
std::vector<SegmentForm> Missing(const StoredSegment& segment, const PerForm<FormSummary>& held) {
  std::vector<SegmentForm> missing;
  for (const SegmentForm form : kHeldForms) {
    if (segment.forms[form] == nullptr || held[form].bytes > 0) continue;
    const bool exact_held =
        held[SegmentForm::kExact].bytes > 0 || held[SegmentForm::kLossless].bytes > 0;
    if (IsExactData(form) && exact_held) continue;
    missing.push_back(form);
  }
  return missing;
}

class DiskTier : public SegmentTier {
 public:
  DiskTier(const DiskTierOptions& options, ProfileStore* profiles, NamespaceDirectory* namespaces)
      : limit_bytes_(options.limit_bytes),
        live_limit_(static_cast<int64_t>(static_cast<double>(options.limit_bytes) * kLiveShare)),
        profile_store_(profiles),
        namespaces_(namespaces),
        database_(options.path, options.env,
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

 private:
  using Batch = DiskDatabase::Batch;

  // With null, that there is nothing. Requires write_mutex_.
  absl::Status ReadContents(DiskDatabase* database);
  absl::Status CheckHealth();
  absl::Status CheckOpen() const;
  absl::Status StoreOne(const StoredSegment& segment, const Patience& patience);
  absl::Status MakeRoom(int64_t bytes, const BlockKey& spared);
  absl::Status EraseSegment(const BlockKey& key);
  void AddProfile(const ProfileLayout& profile, Batch& batch);
  int64_t HeldBytes(const TierWant& want) const;
  absl::StatusOr<FormPtr> LoadOne(const TierWant& want, MemoryBudget& budget,
                                  const Patience& patience);
  void DropDamaged(const TierWant& want, const absl::Status& why);

  const int64_t limit_bytes_;
  const int64_t live_limit_;
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

absl::Status DiskTier::ReadContents(DiskDatabase* database) {
  if (database == nullptr) {
    std::lock_guard<std::mutex> lock(mutex_);
    index_ = DiskIndex();
    return absl::OkStatus();
  }
  KillPoint("disk.open");
  auto contents = ReadDiskContents(*database, *profile_store_, *namespaces_);
  if (!contents.ok()) return contents.status();
  KillPoint("disk.opened");
  Log(LogLevel::kInfo, "disk_tier.open",
      {{"segments", contents->index.segments()},
       {"bytes", contents->index.bytes()},
       {"lost", static_cast<int64_t>(contents->lost)},
       {"profiles", static_cast<int64_t>(contents->profiles.size())}});
  profiles_ = std::move(contents->profiles);
  sequence_ = std::max(sequence_, contents->sequence);
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.damaged_records += contents->lost;
  index_ = std::move(contents->index);
  return absl::OkStatus();
}

absl::Status DiskTier::CheckHealth() {
  if (database_.healthy()) return absl::OkStatus();
  std::lock_guard<std::mutex> lock(write_mutex_);
  return database_.Recover();
}

absl::Status DiskTier::CheckOpen() const {
  if (database_.get() != nullptr) return absl::OkStatus();
  return absl::UnavailableError("disk tier: it is not open");
}

absl::Status DiskTier::Store(std::span<const StoredSegment> segments, const Patience& patience) {
  KillPoint("disk.store");
  if (auto s = CheckHealth(); !s.ok()) return s;
  const uint64_t epoch = database_.epoch();
  for (const StoredSegment& segment : segments) {
    if (auto s = patience.Check(); !s.ok()) return s;
    if (auto s = StoreOne(segment, patience); !s.ok()) return s;
  }
  return database_.Sync(epoch);
}

absl::Status DiskTier::StoreOne(const StoredSegment& segment, const Patience& patience) {
  std::lock_guard<std::mutex> write_lock(write_mutex_);
  if (auto s = CheckOpen(); !s.ok()) return s;
  TierSegment described;
  BlockKey spared = segment.parent;
  bool changed = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (const DiskIndex::Entry* const held = index_.Find(segment.key); held != nullptr) {
      described = index_.Describe(*held);
      spared = segment.key;
      changed = segment.error_bound < described.segment.error_bound;
      index_.Touch(segment.key, absl::InfinitePast());
    } else if (!segment.HoldsAnything()) {
      return absl::FailedPreconditionError(
          absl::StrCat("disk tier: segment ", segment.key.ToHex(), " is not held any more"));
    } else if (!index_.HasParent(segment)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "disk tier: segment ", segment.key.ToHex(), ": its parent is not held; store it first"));
    } else {
      described.segment = segment;
      described.segment.forms = {};
    }
  }
  const std::vector<SegmentForm> missing = Missing(segment, described.forms);
  if (missing.empty() && !changed) return absl::OkStatus();
  described.segment.error_bound = std::min(described.segment.error_bound, segment.error_bound);
  int64_t needed = 0;
  for (const SegmentForm form : missing) {
    const FormBlobs& held = *segment.forms[form];
    described.forms[form] = {.bytes = held.bytes(),
                             .mean_relative_error = held.mean_relative_error(),
                             .max_relative_error = held.max_relative_error()};
    needed += RecordBytes(segment, held.bytes());
  }
  if (auto s = MakeRoom(needed, spared); !s.ok()) return s;
  const std::shared_ptr<DiskDatabase> database = database_.get();
  const auto write = [&](Batch& part) { return database_.Write(part); };
  Batch batch(*database);
  if (segment.context->layout != nullptr) AddProfile(*segment.context->layout, batch);
  for (const SegmentForm form : missing) {
    const absl::Status written = WriteDiskForm(segment, form, *database, write, batch, patience);
    if (IsGivenUp(written)) {
      Batch undo(*database);
      for (const SegmentForm each : missing) {
        AbandonDiskForm(segment, each, segment.forms[each]->bytes(), undo);
      }
      if (auto s = database_.Write(undo); !s.ok()) return s;
    }
    if (!written.ok()) return written;
  }
  batch.PutDescription(segment.key, ++sequence_, EncodeDescription(described));
  KillPoint("disk.before_write");
  if (auto s = database_.Write(batch); !s.ok()) return s;
  KillPoint("disk.after_write");
  if (segment.context->layout != nullptr) profiles_.insert(segment.context->layout->id());
  std::lock_guard<std::mutex> lock(mutex_);
  index_.Put(described);
  return absl::OkStatus();
}

absl::Status DiskTier::MakeRoom(int64_t bytes, const BlockKey& spared) {
  if (bytes > live_limit_) {
    return absl::ResourceExhaustedError(absl::StrCat("disk tier (--disk-bytes): a segment needs ",
                                                     bytes, " bytes of ", live_limit_));
  }
  const absl::Time now = absl::Now();
  while (true) {
    std::optional<BlockKey> victim;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (index_.bytes() + bytes <= live_limit_) return absl::OkStatus();
      victim = index_.NextVictim(now, spared);
      if (!victim.has_value()) {
        return absl::ResourceExhaustedError(
            absl::StrCat("disk tier (--disk-bytes): ", index_.bytes(), " of ", live_limit_,
                         " bytes are used by leased segments; ", bytes, " more do not fit"));
      }
      const DiskIndex::Entry& entry = *index_.Find(*victim);
      ++stats_.evicted_segments;
      stats_.evicted_bytes += static_cast<uint64_t>(entry.total_bytes);
    }
    KillPoint("disk.before_evict");
    if (auto s = EraseSegment(*victim); !s.ok()) return s;
    KillPoint("disk.after_evict");
  }
}

// Requires write_mutex_ and a segment without children. Out of the index first: what is being
// deleted is no longer offered.
absl::Status DiskTier::EraseSegment(const BlockKey& key) {
  TierSegment described;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    described = index_.Describe(*index_.Find(key));
    index_.Erase(key);
  }
  Batch batch(*database_.get());
  batch.DeleteDescription(key);
  for (const SegmentForm form : kHeldForms) {
    if (const int64_t bytes = described.forms[form].bytes; bytes > 0) {
      DeleteDiskForm(described.segment, form, bytes, batch);
    }
  }
  return database_.Write(batch);
}

absl::StatusOr<std::vector<std::optional<TierSegment>>> DiskTier::Describe(
    std::span<const BlockKey> keys, const Patience& /*patience*/) {
  std::vector<std::optional<TierSegment>> result(keys.size());
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < keys.size(); ++i) {
    const DiskIndex::Entry* const entry = index_.Find(keys[i]);
    if (entry != nullptr) result[i] = index_.Describe(*entry);
  }
  return result;
}

int64_t DiskTier::HeldBytes(const TierWant& want) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const DiskIndex::Entry* const entry = index_.Find(want.segment->key);
  return entry != nullptr ? index_.Describe(*entry).forms[want.form].bytes : 0;
}

std::vector<absl::StatusOr<FormPtr>> DiskTier::Load(std::span<const TierWant> wants,
                                                    MemoryBudget& budget,
                                                    const Patience& patience) {
  std::vector<absl::StatusOr<FormPtr>> results;
  for (const TierWant& want : wants) {
    absl::StatusOr<FormPtr> form = LoadOne(want, budget, patience);
    if (absl::IsDataLoss(form.status())) {
      DropDamaged(want, form.status());
    } else if (absl::IsUnavailable(form.status())) {
      std::lock_guard<std::mutex> lock(mutex_);
      ++stats_.read_errors;
    }
    results.push_back(std::move(form));
  }
  return results;
}

absl::StatusOr<FormPtr> DiskTier::LoadOne(const TierWant& want, MemoryBudget& budget,
                                          const Patience& patience) {
  const int64_t bytes = HeldBytes(want);
  if (bytes == 0) return absl::NotFoundError("disk tier: not held");
  KillPoint("disk.before_load");
  const std::shared_ptr<DiskDatabase> database = database_.get();
  if (database == nullptr) return absl::UnavailableError("disk tier: it is being opened again");
  RecordReader reader(*want.segment, want.form, budget);
  const absl::Status read =
      ReadDiskForm(*database, *want.segment, want.form, bytes, patience, reader);
  absl::StatusOr<FormPtr> form = read.ok() ? reader.Finish() : read;
  // Gone meanwhile, or never whole.
  if (absl::IsNotFound(form.status()) && HeldBytes(want) > 0) {
    return absl::DataLossError("disk tier: a chunk is gone");
  }
  return form;
}

void DiskTier::DropDamaged(const TierWant& want, const absl::Status& why) {
  Log(LogLevel::kError, "disk_tier.damaged",
      {{"key", want.segment->key.ToHex()}, {"form", FormName(want.form)}, {"status", why}});
  std::lock_guard<std::mutex> write_lock(write_mutex_);
  if (!CheckOpen().ok()) return;
  TierSegment described;
  bool last = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const DiskIndex::Entry* const entry = index_.Find(want.segment->key);
    if (entry == nullptr) return;
    described = index_.Describe(*entry);
    if (described.forms[want.form].bytes == 0) return;  // another reader was faster
    ++stats_.damaged_records;
    for (const SegmentForm form : kHeldForms) {
      if (form != want.form && described.forms[form].bytes > 0) last = false;
    }
    last = last && entry->children == 0;
  }
  KillPoint("disk.drop_damaged");
  if (last) {
    EraseSegment(want.segment->key).IgnoreError();  // counted and logged; gone from the index
    return;
  }
  const int64_t bytes = std::exchange(described.forms[want.form], {}).bytes;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    index_.Put(described);
  }
  Batch batch(*database_.get());
  batch.PutDescription(want.segment->key, ++sequence_, EncodeDescription(described));
  DeleteDiskForm(described.segment, want.form, bytes, batch);
  database_.Write(batch).IgnoreError();
}

absl::Status DiskTier::Remove(std::span<const BlockKey> keys, const Patience& /*patience*/) {
  if (auto s = CheckHealth(); !s.ok()) return s;
  const uint64_t epoch = database_.epoch();
  {
    std::lock_guard<std::mutex> write_lock(write_mutex_);
    if (auto s = CheckOpen(); !s.ok()) return s;
    for (const BlockKey& key : keys) {
      std::vector<BlockKey> doomed;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        doomed = index_.Subtree(key);
      }
      for (const BlockKey& each : doomed) {
        KillPoint("disk.before_remove");
        if (auto s = EraseSegment(each); !s.ok()) return s;
      }
    }
  }
  KillPoint("disk.after_remove");
  return database_.Sync(epoch);
}

void DiskTier::Touch(std::span<const BlockKey> keys, absl::Time until) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const BlockKey& key : keys) index_.Touch(key, until);
}

void DiskTier::AddProfile(const ProfileLayout& profile, Batch& batch) {
  if (profiles_.contains(profile.id())) return;
  batch.PutProfile(profile.id(), profile.profile().ToJson());
}

absl::Status DiskTier::StoreProfile(const ProfileLayout& profile, const Patience& /*patience*/) {
  if (auto s = CheckHealth(); !s.ok()) return s;
  const uint64_t epoch = database_.epoch();
  {
    std::lock_guard<std::mutex> write_lock(write_mutex_);
    if (auto s = CheckOpen(); !s.ok()) return s;
    if (!profiles_.contains(profile.id())) {
      Batch batch(*database_.get());
      AddProfile(profile, batch);
      KillPoint("disk.before_profile");
      if (auto s = database_.Write(batch); !s.ok()) return s;
      KillPoint("disk.after_profile");
      profiles_.insert(profile.id());
    }
  }
  return database_.Sync(epoch);
}

absl::StatusOr<std::vector<std::string>> DiskTier::LoadProfiles(const Patience& /*patience*/) {
  const std::shared_ptr<DiskDatabase> database = database_.get();
  if (database == nullptr) return absl::UnavailableError("disk tier: it is being opened again");
  std::vector<std::string> profiles;
  const absl::Status read =
      database->ForEachProfile([&](absl::string_view json) { profiles.emplace_back(json); });
  if (!read.ok()) return read;
  return profiles;
}

TierStats DiskTier::Stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  TierStats stats = stats_;
  stats.segments = index_.segments();
  stats.bytes = index_.bytes();
  stats.limit_bytes = limit_bytes_;
  stats.healthy = database_.healthy();
  stats.write_errors = database_.write_errors();
  return stats;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentTier>> OpenDiskTier(const DiskTierOptions& options,
                                                          ProfileStore* profiles,
                                                          NamespaceDirectory* namespaces) {
  if (options.limit_bytes < kSmallestLimit) {
    return absl::InvalidArgumentError(
        absl::StrCat("disk tier (--disk-bytes): ", options.limit_bytes, " bytes; at least ",
                     kSmallestLimit, " are needed"));
  }
  auto tier = std::make_unique<DiskTier>(options, profiles, namespaces);
  if (auto s = tier->Open(); !s.ok()) return s;
  return std::unique_ptr<SegmentTier>(std::move(tier));
}

}  // namespace fourierkv
