#include "kv_service/core/tiered_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/kill_point.h"

namespace fourierkv {
namespace {

constexpr size_t kKeysPerLook = 512;
constexpr absl::Duration kWriteBackPatience = absl::Seconds(60);

SegmentSummary Summarize(const TierSegment& held, size_t tier) {
  SegmentSummary summary;
  summary.key = held.segment.key;
  summary.parent = held.segment.parent;
  summary.context = held.segment.context;
  summary.index = held.segment.index;
  summary.tokens = held.segment.tokens;
  summary.tail = held.segment.tail;
  summary.forms = held.forms;
  summary.tier = static_cast<int>(tier) + 1;
  return summary;
}

}  // namespace

struct TieredStore::Located {
  TierSegment held;
  size_t tier;
};

TieredStore::TieredStore(SegmentStore* memory, std::vector<std::shared_ptr<SegmentTier>> tiers,
                         const TieredOptions& options)
    : memory_(memory), options_(options) {
  for (std::shared_ptr<SegmentTier>& tier : tiers) AddTier(std::move(tier));
}

void TieredStore::AddTier(std::shared_ptr<SegmentTier> tier) {
  if (options_.observer != nullptr) tier->Observe(options_.observer);
  tiers_.push_back(std::make_unique<TierRunner>(std::move(tier), options_.threads));
  if (write_back_ != nullptr) return;
  write_back_ = std::make_unique<WriteBack>(
      [this](size_t number, std::span<const StoredSegment> segments) {
        return KeepIn(number, segments, absl::Now() + kWriteBackPatience);
      },
      options_.write_back_bytes);
}

TieredStore::~TieredStore() { write_back_.reset(); }

WriteBack::Stats TieredStore::write_back() const {
  return write_back_ != nullptr ? write_back_->stats() : WriteBack::Stats();
}

// Half of the time that is left at most: enough remains to answer without a tier that is late.
Patience TieredStore::LookPatience(const Patience& patience) const {
  const absl::Time now = absl::Now();
  return patience.Until(now + std::min(options_.longest_look, (patience.deadline() - now) / 2));
}

std::vector<std::optional<TieredStore::Located>> TieredStore::Locate(std::span<const BlockKey> keys,
                                                                     const Patience& patience) {
  std::vector<std::optional<Located>> located(keys.size());
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    std::vector<size_t> asked;
    std::vector<BlockKey> asked_keys;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (located[i].has_value()) continue;
      asked.push_back(i);
      asked_keys.push_back(keys[i]);
    }
    if (asked.empty()) break;
    auto held = tiers_[tier]->Describe(std::move(asked_keys), LookPatience(patience));
    if (!held.ok()) continue;  // counted by the tier
    for (size_t j = 0; j < asked.size(); ++j) {
      std::optional<TierSegment>& found = (*held)[j];
      if (found.has_value() && HoldsAnything(*found)) located[asked[j]] = {*std::move(found), tier};
    }
  }
  return located;
}

absl::StatusOr<MatchResult> TieredStore::Match(std::span<const BlockKey> keys,
                                               std::optional<BlockKey> tail_key,
                                               absl::Duration lease_ttl, const Patience& patience) {
  absl::StatusOr<MatchResult> match = memory_->Match(keys, tail_key, lease_ttl);
  if (!match.ok() || tiers_.empty()) return match;
  const Reader reader = gate_.Enter();
  const size_t in_memory = match->segments.size();
  std::vector<BlockKey> rest(keys.begin() + in_memory, keys.end());
  if (tail_key.has_value() && !match->tail.has_value()) rest.push_back(*tail_key);
  std::optional<BlockKey> parent;
  if (in_memory > 0) parent = keys[in_memory - 1];
  std::vector<SegmentSummary> more;
  std::vector<StoredSegment> places;
  for (bool ended = false; !ended && more.size() < rest.size();) {
    const auto part = std::span(rest).subspan(more.size());
    const auto asked = part.first(std::min(part.size(), kKeysPerLook));
    const auto located = Locate(asked, patience);
    for (size_t i = 0; i < asked.size() && !ended; ++i) {
      const auto held = memory_->Describe(asked[i]);
      SegmentSummary found;
      if (held.ok() && held->bytes() > 0) {
        found = *held;
      } else if (located[i].has_value()) {
        found = Summarize(located[i]->held, located[i]->tier);
        places.push_back(located[i]->held.segment);
      }
      ended = found.context == nullptr || (parent.has_value() && found.parent != *parent);
      if (ended) break;
      parent = asked[i];
      more.push_back(std::move(found));
    }
  }
  if (more.empty()) return match;
  std::vector<BlockKey> matched;
  for (SegmentSummary& found : more) {
    if (match->segments.size() < keys.size()) {
      match->segments.push_back(std::move(found));
    } else {
      match->tail = std::move(found);
    }
  }
  for (const SegmentSummary& found : match->segments) matched.push_back(found.key);
  if (match->tail.has_value()) matched.push_back(match->tail->key);
  StoreMetrics::Add(memory_->metrics().match_hits, more.size());
  const bool lease = lease_ttl != absl::ZeroDuration();
  const absl::Time until = lease ? absl::Now() + lease_ttl : absl::InfinitePast();
  for (const auto& tier : tiers_) tier->tier().Touch(matched, until);
  if (!lease) return match;
  // The lease on what memory had becomes one on everything.
  if (match->lease.has_value()) memory_->Release(match->lease->id).IgnoreError();
  match->lease.reset();
  const absl::Status placed = Bring(reader, places);
  // What was deleted meanwhile, or evicted from memory just now, is asked for again, and then
  // memory's own answer holds.
  if (absl::IsAborted(placed)) return memory_->Match(keys, tail_key, lease_ttl);
  if (!placed.ok()) return placed;
  auto granted = memory_->AcquireLease(matched, lease_ttl);
  if (absl::IsNotFound(granted.status())) return memory_->Match(keys, tail_key, lease_ttl);
  if (!granted.ok()) return granted.status();
  match->lease = *granted;
  return match;
}

std::vector<std::optional<SegmentSummary>> TieredStore::Describe(std::span<const BlockKey> keys,
                                                                 const Patience& patience) {
  std::vector<std::optional<SegmentSummary>> result(keys.size());
  std::vector<size_t> asked;
  std::vector<BlockKey> asked_keys;
  for (size_t i = 0; i < keys.size(); ++i) {
    auto held = memory_->Describe(keys[i]);
    if (held.ok() && held->bytes() > 0) {
      result[i] = *std::move(held);
    } else {
      asked.push_back(i);
      asked_keys.push_back(keys[i]);
    }
  }
  const auto located = Locate(asked_keys, patience);
  for (size_t j = 0; j < asked.size(); ++j) {
    if (located[j].has_value()) result[asked[j]] = Summarize(located[j]->held, located[j]->tier);
  }
  return result;
}

absl::Status TieredStore::Bring(const Reader& reader, std::span<const StoredSegment> places) {
  std::vector<BlockKey> keys;
  for (const StoredSegment& place : places) keys.push_back(place.key);
  absl::Status status = absl::AbortedError("it was deleted meanwhile");
  gate_.Bring(reader, keys, [&] { status = memory_->Anchor(places); });
  return status;
}

absl::Status TieredStore::Anchor(const Reader& reader, const BlockKey& key,
                                 const Patience& patience) {
  std::vector<StoredSegment> chain;
  for (BlockKey at = key; !memory_->Describe(at).ok();) {
    auto located = Locate(std::span(&at, 1), patience);
    if (!located[0].has_value()) {
      return absl::NotFoundError(absl::StrCat("segment ", at.ToHex(), " is not held"));
    }
    chain.push_back(std::move(located[0]->held.segment));
    if (chain.back().index == 0) break;
    at = chain.back().parent;
  }
  std::reverse(chain.begin(), chain.end());
  return Bring(reader, chain);
}

absl::StatusOr<Lease> TieredStore::Pin(std::span<const BlockKey> keys, absl::Duration ttl,
                                       const Patience& patience) {
  if (!tiers_.empty()) {
    if (absl::Status s = SegmentStore::CheckLease(keys.size(), ttl); !s.ok()) return s;
    const Reader reader = gate_.Enter();
    const Patience look = LookPatience(patience);
    // The first that is nowhere, or did not come in time, is named by memory.
    for (const BlockKey& key : keys) {
      if (!Anchor(reader, key, look).ok()) break;
    }
  }
  absl::StatusOr<Lease> lease = memory_->AcquireLease(keys, ttl);
  if (!lease.ok()) return lease;
  for (const auto& tier : tiers_) tier->tier().Touch(keys, absl::Now() + ttl);
  return lease;
}

bool TieredStore::Expire() {
  bool more = memory_->Expire();
  for (const auto& tier : tiers_) more = tier->tier().Expire() || more;
  return more;
}

std::vector<std::optional<TierSegment>> TieredStore::Prepare(std::optional<BlockKey> parent,
                                                             std::span<const BlockKey> keys,
                                                             const Patience& patience) {
  std::vector<std::optional<TierSegment>> result(keys.size());
  if (tiers_.empty()) return result;
  const Reader reader = gate_.Enter();
  // Not held anywhere: the put is told so by memory.
  if (parent.has_value()) Anchor(reader, *parent, patience).IgnoreError();
  auto located = Locate(keys, patience);
  std::vector<StoredSegment> places;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!located[i].has_value()) continue;
    places.push_back(located[i]->held.segment);
    result[i] = std::move(located[i]->held);
  }
  // Without a place a segment is put once more.
  if (!Bring(reader, places).ok()) result.assign(keys.size(), std::nullopt);
  return result;
}

absl::Status TieredStore::KeepIn(size_t tier, std::span<const StoredSegment> segments,
                                 const Patience& patience) {
  TierRunner& runner = *tiers_[tier];
  std::vector<StoredSegment> before;
  const StoredSegment& first = segments.front();
  for (BlockKey at = first.parent; at != first.context->root;) {
    auto held = runner.Describe({at}, patience);
    if (!held.ok()) return held.status();
    if ((*held)[0].has_value()) break;
    auto stored = memory_->Get(std::span(&at, 1));
    if (!stored[0].has_value() || !stored[0]->HoldsAnything()) {
      return absl::FailedPreconditionError(
          absl::StrCat("segment ", at.ToHex(), " is not held any more"));
    }
    before.push_back(*std::move(stored[0]));
    at = before.back().parent;
  }
  std::reverse(before.begin(), before.end());
  before.insert(before.end(), segments.begin(), segments.end());
  return runner.Store(std::move(before), patience);
}

Durability TieredStore::Keep(std::span<const BlockKey> keys, Durability wanted,
                             const Patience& patience) {
  Durability reached = Durability::kMemory;
  if (tiers_.empty()) return reached;
  std::vector<StoredSegment> segments;
  for (auto& stored : memory_->Get(keys)) {
    if (!stored.has_value()) return reached;  // deleted or evicted already
    segments.push_back(*std::move(stored));
  }
  KillPoint("keep.begin");
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    const Durability offered = tiers_[tier]->tier().durability();
    if (offered > wanted) {
      std::vector<StoredSegment> behind;
      for (const StoredSegment& s : segments) {
        if (s.HoldsAnything()) behind.push_back(s);
      }
      if (!behind.empty()) write_back_->Push(tier, std::move(behind));
      continue;
    }
    const absl::Status status = KeepIn(tier, segments, patience);
    if (status.ok()) {
      reached = std::max(reached, offered);
    } else {
      const absl::string_view name = tiers_[tier]->tier().name();
      const LogLevel level = absl::IsCancelled(status) ? LogLevel::kInfo : LogLevel::kWarning;
      Log(level, "tier.not_kept", {{"tier", name}, {"status", status}});
    }
  }
  KillPoint("keep.done");
  return reached;
}

absl::StatusOr<DeleteResult> TieredStore::Delete(std::span<const BlockKey> keys,
                                                 const Patience& patience) {
  // Until the last tier is done, also if nobody waits for that: what a reader has already loaded,
  // or still finds, does not come back.
  auto deletion = gate_.Begin(keys);
  absl::StatusOr<DeleteResult> deleted = memory_->Delete(keys, /*recursive=*/true);
  if (!deleted.ok() || tiers_.empty()) return deleted;
  absl::Status status;
  if (!write_back_->Forget(keys, patience)) status = patience.Over();
  for (const auto& tier : tiers_) {
    status.Update(tier->Remove({keys.begin(), keys.end()}, patience, deletion));
  }
  if (!status.ok()) return status;
  return deleted;
}

void TieredStore::StoreProfile(const std::shared_ptr<const ProfileLayout>& profile,
                               const Patience& patience) {
  for (const auto& tier : tiers_) {
    const absl::Status status = tier->StoreProfile(profile, LookPatience(patience));
    if (status.ok()) continue;
    Log(LogLevel::kWarning, "tier.profile_not_kept",
        {{"tier", tier->tier().name()}, {"status", status}});
  }
}

}  // namespace fourierkv
