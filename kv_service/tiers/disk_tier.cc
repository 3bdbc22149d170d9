#include "kv_service/tiers/disk_tier.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/tiers/disk_database.h"
#include "kv_service/tiers/disk_index.h"

namespace fourierkv {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;
constexpr int64_t kBatchBytes = int64_t{16} << 20;  // of one write; larger records take several
constexpr int64_t kSmallestLimit = int64_t{1} << 20;
constexpr absl::Duration kRecoverEvery = absl::Seconds(5);
constexpr int kPatience = 100;  // times 10 ms for reads to leave a database that is closed
constexpr absl::Duration kCollectEvery = absl::Seconds(1);
// Of payload files, beyond which garbage is collected; above it, only when there is enough to gain.
constexpr double kCollectAbove = 0.9;
constexpr double kWorthCollecting = 0.1;

int64_t ChunkCount(int64_t record_bytes) { return (record_bytes + kChunkBytes - 1) / kChunkBytes; }

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
      : options_(options),
        limit_bytes_(options.limit_bytes),
        live_limit_(static_cast<int64_t>(static_cast<double>(options.limit_bytes) * kLiveShare)),
        profile_store_(profiles),
        namespaces_(namespaces),
        collector_([this] { CollectGarbageLoop(); }) {}

  ~DiskTier() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    stopped_.notify_all();
    collector_.join();
  }

  // Opens the database and reads its index; once more after what it cannot recover from.
  absl::Status Open();

  absl::string_view name() const override { return "disk"; }
  Durability durability() const override { return Durability::kDisk; }
  int load_batch() const override { return 1; }
  bool DescribesAtOnce() const override { return true; }

  absl::Status Store(std::span<const StoredSegment> segments, absl::Time deadline) override;
  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(std::span<const BlockKey> keys,
                                                                   absl::Time deadline) override;
  std::vector<absl::StatusOr<FormPtr>> Load(std::span<const TierWant> wants, MemoryBudget& budget,
                                            absl::Time deadline) override;
  absl::Status Remove(std::span<const BlockKey> keys, absl::Time deadline) override;
  void Touch(std::span<const BlockKey> keys, absl::Time until) override;
  absl::Status StoreProfile(const ProfileLayout& profile, absl::Time deadline) override;
  absl::StatusOr<std::vector<std::string>> LoadProfiles(absl::Time deadline) override;
  TierStats Stats() const override;

 private:
  using Batch = DiskDatabase::Batch;

  using DatabasePtr = std::shared_ptr<DiskDatabase>;

  // Null while it cannot be opened again.
  DatabasePtr database() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return database_;
  }
  absl::Status OpenLocked();
  absl::Status LoadIndex();
  absl::Status Recover();
  absl::Status StoreOne(const StoredSegment& segment);
  absl::Status WriteForm(const StoredSegment& segment, SegmentForm form, Batch& last);
  absl::Status MakeRoom(int64_t bytes, const BlockKey& spared);
  absl::Status EraseSegment(const BlockKey& key);
  void AddProfile(const ProfileLayout& profile, Batch& batch);
  absl::Status LoadOne(const TierWant& want, RecordReader& reader, int64_t chunks,
                       absl::Time deadline);
  void DropDamaged(const TierWant& want, const absl::Status& why);
  // Writes under write_mutex_; failures make the tier unhealthy.
  absl::Status Write(Batch& batch);
  // Fails, too, if the database was opened again since `epoch`: what was written may be lost.
  absl::Status Sync(uint64_t epoch);
  absl::Status Failed(absl::Status status);
  absl::Status CheckHealth();
  void CollectGarbageLoop();

  const DiskTierOptions options_;
  const int64_t limit_bytes_;
  const int64_t live_limit_;
  ProfileStore* const profile_store_;
  NamespaceDirectory* const namespaces_;

  // Held by whoever changes what is stored, so that index and database change alike; taken before
  // mutex_. Reads and fsyncs go on beside it.
  std::mutex write_mutex_;
  absl::flat_hash_set<Digest> profiles_;  // written; guarded by write_mutex_
  uint64_t sequence_ = 0;                 // guarded by write_mutex_
  absl::Time recovered_at_;               // last tried; guarded by write_mutex_

  mutable std::mutex mutex_;  // never held during I/O; guards what follows
  // Changed under write_mutex_ too, which therefore keeps it from changing.
  DatabasePtr database_;
  DiskIndex index_;
  TierStats stats_;
  bool stopping_ = false;
  std::condition_variable stopped_;

  std::atomic<bool> healthy_{true};
  std::atomic<uint64_t> written_{0};  // batches
  std::atomic<uint64_t> synced_{0};   // of these
  std::atomic<uint64_t> epoch_{0};    // how often the database was opened again
  std::thread collector_;             // last: it uses all of the above
};

absl::Status DiskTier::Open() {
  std::lock_guard<std::mutex> write_lock(write_mutex_);
  return OpenLocked();
}

absl::Status DiskTier::OpenLocked() {
  auto opened = DiskDatabase::Open(options_.path, options_.env);
  if (!opened.ok()) return opened.status();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    database_ = *std::move(opened);
    index_ = DiskIndex();
  }
  const absl::Status loaded = LoadIndex();
  if (!loaded.ok()) {
    std::lock_guard<std::mutex> lock(mutex_);
    database_ = nullptr;
    index_ = DiskIndex();
  }
  return loaded;
}

// Requires write_mutex_; nothing else uses the index before it is whole.
absl::Status DiskTier::LoadIndex() {
  KillPoint("disk.open");
  if (auto s = database_->DropUnfinished(); !s.ok()) return s;
  const absl::Status profiles_read = database_->ForEachProfile([&](absl::string_view json) {
    auto layout = profile_store_->Put(json);
    if (layout.ok()) {
      profiles_.insert((*layout)->id());
    } else {
      Log(LogLevel::kError, "disk_tier.profile_lost", {{"status", layout.status()}});
    }
  });
  if (!profiles_read.ok()) return profiles_read;

  struct Found {
    uint64_t sequence;
    TierSegment segment;
  };
  std::vector<Found> found;
  std::vector<BlockKey> lost;
  const auto resolve = [&](absl::string_view ns) { return namespaces_->Resolve(ns); };
  const absl::Status read = database_->ForEachDescription(
      [&](const BlockKey& key, uint64_t sequence, absl::string_view bytes) {
        sequence_ = std::max(sequence_, sequence);
        auto segment = DecodeDescription(bytes, resolve);
        if (segment.ok() && segment->segment.key == key) {
          found.push_back({sequence, *std::move(segment)});
        } else {
          lost.push_back(key);
        }
      });
  if (!read.ok()) return read;
  // Parents first; then in the order of their age, which their use would else be.
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::tie(a.segment.segment.index, a.sequence) <
           std::tie(b.segment.segment.index, b.sequence);
  });
  std::vector<std::pair<uint64_t, BlockKey>> ages;
  DiskIndex index;
  for (const Found& f : found) {
    if (index.HasParent(f.segment.segment)) {
      index.Put(f.segment);
      ages.emplace_back(f.sequence, f.segment.segment.key);
    } else {
      lost.push_back(f.segment.segment.key);
    }
  }
  std::sort(ages.begin(), ages.end());
  for (const auto& [sequence, key] : ages) index.Touch(key, absl::InfinitePast());
  for (const BlockKey& key : lost) {
    // Its chunks cannot be counted any more; a segment of that key will overwrite them.
    Batch batch(*database_);
    batch.DeleteDescription(key);
    if (auto s = Write(batch); !s.ok()) return s;
  }
  KillPoint("disk.opened");
  Log(LogLevel::kInfo, "disk_tier.open",
      {{"segments", index.segments()},
       {"bytes", index.bytes()},
       {"lost", static_cast<int64_t>(lost.size())},
       {"profiles", static_cast<int64_t>(profiles_.size())}});
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.damaged_records += lost.size();
  index_ = std::move(index);
  return absl::OkStatus();
}

absl::Status DiskTier::Failed(absl::Status status) {
  if (status.ok() || absl::IsNotFound(status) || absl::IsDeadlineExceeded(status)) return status;
  if (healthy_.exchange(false)) {
    Log(LogLevel::kError, "disk_tier.failing", {{"status", status}});
  }
  std::lock_guard<std::mutex> lock(mutex_);
  ++stats_.write_errors;
  return status;
}

absl::Status DiskTier::CheckHealth() {
  if (healthy_) return absl::OkStatus();
  std::lock_guard<std::mutex> lock(write_mutex_);
  if (healthy_) return absl::OkStatus();
  const absl::Time now = absl::Now();
  if (now - recovered_at_ < kRecoverEvery) {
    return absl::UnavailableError("disk tier: an earlier write failed; it is tried again soon");
  }
  recovered_at_ = now;
  return Recover();
}

absl::Status DiskTier::Recover() {
  if (database_ == nullptr || !database_->Recover().ok()) {
    // What is written to the log but not synced may be lost, so what is held is read anew.
    std::weak_ptr<DiskDatabase> old = database_;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      database_ = nullptr;
      index_ = DiskIndex();
    }
    epoch_.fetch_add(1);
    for (int i = 0; i < kPatience && !old.expired(); ++i) absl::SleepFor(absl::Milliseconds(10));
    if (auto s = OpenLocked(); !s.ok()) return s;
  }
  healthy_ = true;
  Log(LogLevel::kInfo, "disk_tier.recovered");
  return absl::OkStatus();
}

absl::Status DiskTier::Write(Batch& batch) {
  if (auto s = database_->Write(batch); !s.ok()) return Failed(s);
  written_.fetch_add(1);
  return absl::OkStatus();
}

absl::Status DiskTier::Sync(uint64_t epoch) {
  const uint64_t due = written_.load();
  if (synced_.load() >= due && epoch_.load() == epoch) return absl::OkStatus();
  KillPoint("disk.before_sync");
  const DatabasePtr database = this->database();
  if (database == nullptr) return absl::UnavailableError("disk tier: it is being opened again");
  if (auto s = database->Sync(); !s.ok()) return Failed(s);
  KillPoint("disk.after_sync");
  uint64_t synced = synced_.load();
  while (synced < due && !synced_.compare_exchange_weak(synced, due)) continue;
  // A write that failed meanwhile may have been one that this was to make durable.
  if (!healthy_ || epoch_.load() != epoch)
    return absl::UnavailableError("disk tier: a write failed meanwhile");
  return absl::OkStatus();
}

absl::Status DiskTier::Store(std::span<const StoredSegment> segments, absl::Time deadline) {
  KillPoint("disk.store");
  if (auto s = CheckHealth(); !s.ok()) return s;
  const uint64_t epoch = epoch_.load();
  for (const StoredSegment& segment : segments) {
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError("disk tier: not everything was stored in time");
    }
    if (auto s = StoreOne(segment); !s.ok()) return s;
  }
  return Sync(epoch);
}

absl::Status DiskTier::StoreOne(const StoredSegment& segment) {
  std::lock_guard<std::mutex> write_lock(write_mutex_);
  if (database_ == nullptr) return absl::UnavailableError("disk tier: it is not open");
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
  Batch batch(*database_);
  if (segment.context->layout != nullptr) AddProfile(*segment.context->layout, batch);
  for (const SegmentForm form : missing) {
    if (auto s = WriteForm(segment, form, batch); !s.ok()) return s;
  }
  batch.PutDescription(segment.key, ++sequence_, EncodeDescription(described));
  KillPoint("disk.before_write");
  if (auto s = Write(batch); !s.ok()) return s;
  KillPoint("disk.after_write");
  if (segment.context->layout != nullptr) profiles_.insert(segment.context->layout->id());
  std::lock_guard<std::mutex> lock(mutex_);
  index_.Put(described);
  return absl::OkStatus();
}

// Leaves in `last` what must be written together with the description.
absl::Status DiskTier::WriteForm(const StoredSegment& segment, SegmentForm form, Batch& last) {
  const RecordWriter record(segment, form);
  const auto chunks = record.Chunks(kChunkBytes);
  const bool several = record.bytes() > kBatchBytes;
  uint32_t number = 0;
  if (several) {
    Batch mark(*database_);
    mark.Mark(segment.key, form, static_cast<int64_t>(chunks.size()));
    if (auto s = Write(mark); !s.ok()) return s;
    KillPoint("disk.marked");
    while (chunks.size() - number > 1) {
      Batch some(*database_);
      for (int64_t bytes = 0; bytes < kBatchBytes && chunks.size() - number > 1;
           bytes += kChunkBytes) {
        some.PutChunk(segment.key, form, number, chunks[number]);
        ++number;
      }
      if (auto s = Write(some); !s.ok()) return s;
      KillPoint("disk.part_written");
    }
    last.Unmark(segment.key, form);
  }
  for (; number < chunks.size(); ++number) {
    last.PutChunk(segment.key, form, number, chunks[number]);
  }
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
  Batch batch(*database_);
  batch.DeleteDescription(key);
  for (const SegmentForm form : kHeldForms) {
    if (const int64_t bytes = described.forms[form].bytes; bytes > 0) {
      batch.DeleteChunks(key, form, ChunkCount(RecordBytes(described.segment, bytes)));
    }
  }
  return Write(batch);
}

absl::StatusOr<std::vector<std::optional<TierSegment>>> DiskTier::Describe(
    std::span<const BlockKey> keys, absl::Time /*deadline*/) {
  std::vector<std::optional<TierSegment>> result(keys.size());
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < keys.size(); ++i) {
    const DiskIndex::Entry* const entry = index_.Find(keys[i]);
    if (entry != nullptr) result[i] = index_.Describe(*entry);
  }
  return result;
}

std::vector<absl::StatusOr<FormPtr>> DiskTier::Load(std::span<const TierWant> wants,
                                                    MemoryBudget& budget, absl::Time deadline) {
  std::vector<absl::StatusOr<FormPtr>> results;
  for (const TierWant& want : wants) {
    const auto held_bytes = [&] {
      std::lock_guard<std::mutex> lock(mutex_);
      const DiskIndex::Entry* const entry = index_.Find(want.segment->key);
      return entry != nullptr ? index_.Describe(*entry).forms[want.form].bytes : 0;
    };
    const int64_t bytes = held_bytes();
    if (bytes == 0) {
      results.emplace_back(absl::NotFoundError("disk tier: not held"));
      continue;
    }
    KillPoint("disk.before_load");
    RecordReader reader(*want.segment, want.form, budget);
    const absl::Status read =
        LoadOne(want, reader, ChunkCount(RecordBytes(*want.segment, bytes)), deadline);
    absl::StatusOr<FormPtr> form = read.ok() ? reader.Finish() : read;
    // Gone meanwhile, or never whole.
    if (absl::IsNotFound(form.status()) && held_bytes() > 0) {
      form = absl::DataLossError("disk tier: a chunk is gone");
    }
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

absl::Status DiskTier::LoadOne(const TierWant& want, RecordReader& reader, int64_t chunks,
                               absl::Time deadline) {
  const DatabasePtr database = this->database();
  if (database == nullptr) return absl::UnavailableError("disk tier: it is being opened again");
  for (int64_t i = 0; i < chunks; ++i) {
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError("disk tier: not everything was read in time");
    }
    const absl::Status status =
        database_->ReadChunk(want.segment->key, want.form, static_cast<uint32_t>(i), deadline,
                             [&](std::span<const std::byte> bytes) { return reader.Add(bytes); });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void DiskTier::DropDamaged(const TierWant& want, const absl::Status& why) {
  Log(LogLevel::kError, "disk_tier.damaged",
      {{"key", want.segment->key.ToHex()}, {"form", FormName(want.form)}, {"status", why}});
  std::lock_guard<std::mutex> write_lock(write_mutex_);
  if (database_ == nullptr) return;
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
  Batch batch(*database_);
  batch.PutDescription(want.segment->key, ++sequence_, EncodeDescription(described));
  batch.DeleteChunks(want.segment->key, want.form,
                     ChunkCount(RecordBytes(described.segment, bytes)));
  Write(batch).IgnoreError();
}

absl::Status DiskTier::Remove(std::span<const BlockKey> keys, absl::Time /*deadline*/) {
  if (auto s = CheckHealth(); !s.ok()) return s;
  const uint64_t epoch = epoch_.load();
  {
    std::lock_guard<std::mutex> write_lock(write_mutex_);
    if (database_ == nullptr) return absl::UnavailableError("disk tier: it is not open");
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
  return Sync(epoch);
}

void DiskTier::Touch(std::span<const BlockKey> keys, absl::Time until) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const BlockKey& key : keys) index_.Touch(key, until);
}

void DiskTier::AddProfile(const ProfileLayout& profile, Batch& batch) {
  if (profiles_.contains(profile.id())) return;
  batch.PutProfile(profile.id(), profile.profile().ToJson());
}

absl::Status DiskTier::StoreProfile(const ProfileLayout& profile, absl::Time /*deadline*/) {
  if (auto s = CheckHealth(); !s.ok()) return s;
  const uint64_t epoch = epoch_.load();
  {
    std::lock_guard<std::mutex> write_lock(write_mutex_);
    if (database_ == nullptr) return absl::UnavailableError("disk tier: it is not open");
    if (!profiles_.contains(profile.id())) {
      Batch batch(*database_);
      AddProfile(profile, batch);
      KillPoint("disk.before_profile");
      if (auto s = Write(batch); !s.ok()) return s;
      KillPoint("disk.after_profile");
      profiles_.insert(profile.id());
    }
  }
  return Sync(epoch);
}

absl::StatusOr<std::vector<std::string>> DiskTier::LoadProfiles(absl::Time /*deadline*/) {
  std::vector<std::string> profiles;
  const absl::Status read =
      database_->ForEachProfile([&](absl::string_view json) { profiles.emplace_back(json); });
  if (!read.ok()) return read;
  return profiles;
}

TierStats DiskTier::Stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  TierStats stats = stats_;
  stats.segments = index_.segments();
  stats.bytes = index_.bytes();
  stats.limit_bytes = limit_bytes_;
  stats.healthy = healthy_;
  return stats;
}

void DiskTier::CollectGarbageLoop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopped_.wait_for(lock, absl::ToChronoNanoseconds(kCollectEvery),
                            [&] { return stopping_; })) {
    const DatabasePtr database = database_;
    if (database == nullptr) continue;
    lock.unlock();
    const auto files = static_cast<double>(database->PayloadFileBytes());
    const auto garbage = static_cast<double>(database->PayloadGarbageBytes());
    const auto limit = static_cast<double>(limit_bytes_);
    if (healthy_ && files > kCollectAbove * limit && garbage > kWorthCollecting * limit) {
      Failed(database->CollectGarbage()).IgnoreError();
    }
    lock.lock();
  }
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
