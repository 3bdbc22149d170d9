#include "kv_service/tiers/disk_tier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/tiers/disk_contents.h"
#include "kv_service/tiers/disk_forms.h"
#include "kv_service/tiers/disk_tier_impl.h"

namespace fourierkv {
namespace {

constexpr int64_t kSmallestLimit = int64_t{1} << 20;

}  // namespace

absl::Status DiskTier::ReadContents(DiskDatabase* database) {
  if (database == nullptr) {
    std::lock_guard<std::mutex> lock(mutex_);
    // What was written and not synced may be lost: told again when it is read.
    for (size_t slot = 0; observer_ != nullptr && slot < index_.slots(); ++slot) {
      const DiskIndex::Entry* const entry = index_.At(slot);
      if (entry != nullptr) TellLost(index_.Describe(*entry).segment, RemovalReason::kEvicted);
    }
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
  for (size_t slot = 0; observer_ != nullptr && slot < index_.slots(); ++slot) {
    TellHeld(index_.Describe(*index_.At(slot)));
  }
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

absl::StatusOr<std::vector<std::optional<TierSegment>>> DiskTier::Describe(
    std::span<const BlockKey> keys, const Patience& /*patience*/) {
  std::vector<std::optional<TierSegment>> result(keys.size());
  const absl::Time now = clock_();
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < keys.size(); ++i) {
    const DiskIndex::Entry* const entry = index_.Find(keys[i]);
    if (entry == nullptr || DiskIndex::IsExpired(*entry, now)) continue;
    result[i] = index_.Describe(*entry);
  }
  return result;
}

int64_t DiskTier::HeldBytes(const TierWant& want) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const DiskIndex::Entry* const entry = index_.Find(want.segment->key);
  if (entry == nullptr || DiskIndex::IsExpired(*entry, clock_())) return 0;
  return index_.Describe(*entry).forms[want.form].bytes;
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

void DiskTier::Touch(std::span<const BlockKey> keys, absl::Time until) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const BlockKey& key : keys) index_.Touch(key, until);
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

bool DiskTier::Walk(size_t& position, size_t most, std::vector<TierSegment>& rows) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t end = std::min(index_.slots(), position + most);
  for (; position < end; ++position) {
    const DiskIndex::Entry* const entry = index_.At(position);
    if (entry != nullptr) rows.push_back(index_.Describe(*entry));
  }
  return position < index_.slots();
}

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
