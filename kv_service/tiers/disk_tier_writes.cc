// What the disk tier stores, and what it lets go of.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/core/tenant_salt.h"
#include "kv_service/tiers/disk_forms.h"
#include "kv_service/tiers/disk_tier_impl.h"

namespace fourierkv {
namespace {

constexpr size_t kExpiredAtOnce = 32;

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

}  // namespace

void DiskTier::TellHeld(const TierSegment& held) const {
  // A hole was told of when it became one.
  if (observer_ != nullptr && HoldsAnything(held)) observer_->TierHolds(Durability::kDisk, held);
}

void DiskTier::TellLost(const StoredSegment& segment, RemovalReason reason) const {
  if (observer_ != nullptr) observer_->TierLost(Durability::kDisk, segment, reason);
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
      changed = segment.error_bound < described.segment.error_bound ||
                segment.expires > described.segment.expires;
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
  described.segment.expires = std::max(described.segment.expires, segment.expires);
  int64_t needed = 0;
  for (const SegmentForm form : missing) {
    const FormBlobs& held = *segment.forms[form];
    described.forms[form] = {.bytes = held.bytes(),
                             .mean_relative_error = held.mean_relative_error(),
                             .max_relative_error = held.max_relative_error()};
    needed += RecordBytes(segment, held.bytes());
  }
  if (auto s = MakeRoom(needed, segment, spared); !s.ok()) return s;
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
  TellHeld(described);
  return absl::OkStatus();
}

absl::Status DiskTier::MakeRoom(int64_t bytes, const StoredSegment& segment,
                                const BlockKey& spared) {
  const absl::string_view tenant = TenantOf(segment.context->ns);
  const int64_t tenant_limit = tenant_limit_ ? tenant_limit_(tenant) : 0;
  const int64_t limit = tenant_limit > 0 ? std::min(tenant_limit, live_limit_) : live_limit_;
  if (bytes > limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat("disk tier (", limit < live_limit_ ? "quota disk_bytes" : "--disk-bytes",
                     "): a segment needs ", bytes, " bytes of ", limit));
  }
  const absl::Time now = clock_();
  while (true) {
    std::optional<BlockKey> victim;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      // Whoever is beyond his own share makes room of his own.
      const int64_t held = index_.TenantBytes(tenant);
      const bool tenant_full = tenant_limit > 0 && held + bytes > tenant_limit;
      if (!tenant_full && index_.bytes() + bytes <= live_limit_) return absl::OkStatus();
      if (const auto expired = index_.Expired(now, 1); !tenant_full && !expired.empty()) {
        victim = expired.front();
      } else {
        victim = index_.NextVictim(now, spared, tenant_full ? std::optional(tenant) : std::nullopt);
      }
      if (!victim.has_value() || *victim == spared) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "disk tier (", tenant_full ? "quota disk_bytes" : "--disk-bytes", "): ",
            tenant_full ? held : index_.bytes(), " of ", tenant_full ? tenant_limit : live_limit_,
            " bytes are used by leased segments; ", bytes, " more do not fit"));
      }
      const DiskIndex::Entry& entry = *index_.Find(*victim);
      ++stats_.evicted_segments;
      stats_.evicted_bytes += static_cast<uint64_t>(entry.total_bytes);
    }
    KillPoint("disk.before_evict");
    if (auto s = EraseSegment(*victim, RemovalReason::kEvicted); !s.ok()) return s;
    KillPoint("disk.after_evict");
  }
}

// Out of the index first: what is being deleted is no longer offered.
absl::Status DiskTier::EraseSegment(const BlockKey& key, RemovalReason reason) {
  TierSegment described;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    described = index_.Describe(*index_.Find(key));
    index_.Erase(key);
    if (HoldsAnything(described)) TellLost(described.segment, reason);
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
    EraseSegment(want.segment->key, RemovalReason::kDamaged)
        .IgnoreError();  // counted and logged; gone from the index
    return;
  }
  const int64_t bytes = std::exchange(described.forms[want.form], {}).bytes;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    index_.Put(described);
    if (HoldsAnything(described)) {
      TellHeld(described);
    } else {
      TellLost(described.segment, RemovalReason::kDamaged);
    }
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
        if (auto s = EraseSegment(each, RemovalReason::kDeleted); !s.ok()) return s;
      }
    }
  }
  KillPoint("disk.after_remove");
  return database_.Sync(epoch);
}

bool DiskTier::Expire() {
  std::vector<BlockKey> expired;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    expired = index_.Expired(clock_(), kExpiredAtOnce);
  }
  if (expired.empty() || !database_.healthy()) return false;
  std::lock_guard<std::mutex> write_lock(write_mutex_);
  if (!CheckOpen().ok()) return false;
  for (const BlockKey& key : expired) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const DiskIndex::Entry* const entry = index_.Find(key);
      // It may have been continued, extended or protected meanwhile.
      if (entry == nullptr || entry->children > 0 || !DiskIndex::IsExpired(*entry, clock_())) {
        continue;
      }
      ++stats_.expired_segments;
    }
    KillPoint("disk.before_expire");
    if (!EraseSegment(key, RemovalReason::kDeleted).ok()) return false;
    KillPoint("disk.after_expire");
  }
  return true;  // parents may follow
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

}  // namespace fourierkv
