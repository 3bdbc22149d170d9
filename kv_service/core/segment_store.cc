#include "kv_service/core/segment_store.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kv_service/core/segment_tree.h"
#include "kv_service/core/tenant_salt.h"

namespace fourierkv {
namespace {

// What a segment's parent must fit to.
struct Place {
  const NamespaceContext* context;
  int64_t index;
  bool tail;
};

// Whether `segment` may follow `parent`, nullopt if it is not stored.
absl::Status CheckParent(const StoredSegment& segment, std::optional<Place> parent) {
  const auto fault = [&](auto... why) {
    return absl::FailedPreconditionError(
        absl::StrCat("segment ", segment.index, ": its parent ", segment.parent.ToHex(), why...));
  };
  if (segment.parent == segment.context->root) {
    return segment.index == 0 ? absl::OkStatus()
                              : fault(" is the namespace's root; index must be 0");
  }
  if (!parent.has_value()) return fault(" is not stored; put that first");
  if (parent->tail) return fault(" is a tail, which nothing can follow");
  if (parent->context->root != segment.context->root) return fault(" is in another namespace");
  if (parent->index + 1 != segment.index) return fault(" has index ", parent->index);
  return absl::OkStatus();
}

absl::Status CheckTenantRoom(int64_t held, int64_t pledged, int64_t more, int64_t limit) {
  if (more <= std::max<int64_t>(0, limit - held - pledged)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the tenant stores ", held, " of its ", limit, " bytes (quota stored_bytes)",
                   pledged > 0 ? absl::StrCat(" and is putting ", pledged) : "", "; ", more,
                   " more do not fit: delete segments, or wait until some are evicted"));
}

}  // namespace

SegmentStore::SegmentStore(std::shared_ptr<MemoryBudget> budget,
                           std::shared_ptr<StoreMetrics> metrics, Clock clock,
                           SegmentObserver* observer)
    : budget_(std::move(budget)),
      metrics_(std::move(metrics)),
      clock_(std::move(clock)),
      tree_(std::make_unique<SegmentTree>(observer)) {
  budget_->SetReclaimer([this](int64_t bytes) { return Evict(bytes); });
}

SegmentStore::~SegmentStore() { budget_->SetReclaimer({}); }

absl::StatusOr<MatchResult> SegmentStore::Match(std::span<const BlockKey> keys,
                                                std::optional<BlockKey> tail_key,
                                                absl::Duration lease_ttl) {
  const size_t asked = keys.size() + (tail_key.has_value() ? 1 : 0);
  const bool lease = lease_ttl != absl::ZeroDuration();
  if (lease && asked > 0) {
    if (auto s = CheckLease(asked, lease_ttl); !s.ok()) return s;
  }
  MatchResult result;
  SegmentEntry* last = nullptr;
  std::vector<BlockKey> matched;
  matched.reserve(asked);
  result.segments.reserve(keys.size());
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mutex_);
  ExpireLocked(garbage);
  tree_->BeginTouch(clock_());
  const auto match = [&](const BlockKey& key) -> const SegmentEntry* {
    SegmentEntry* const entry = FindLocked(key);
    if (entry == nullptr || entry->forms.empty()) return nullptr;  // absent or a hole
    if (last != nullptr && entry->parent != last) return nullptr;
    last = entry;
    matched.push_back(key);
    return entry;
  };
  for (const BlockKey& key : keys) {
    const SegmentEntry* const entry = match(key);
    if (entry == nullptr) break;
    result.segments.push_back(entry->Summarize());
  }
  if (tail_key.has_value() && result.segments.size() == keys.size()) {
    if (const SegmentEntry* const entry = match(*tail_key); entry != nullptr) {
      result.tail = entry->Summarize();
    }
  }
  if (last != nullptr) tree_->Touch(*last);  // and so all before it
  StoreMetrics::Add(metrics_->match_hits, matched.size());
  StoreMetrics::Add(metrics_->match_misses, asked - matched.size());
  if (lease && !matched.empty()) {
    auto granted = GrantLocked(std::move(matched), lease_ttl);
    if (!granted.ok()) return granted.status();
    result.lease = *granted;
  }
  return result;
}

std::vector<std::optional<StoredSegment>> SegmentStore::Get(std::span<const BlockKey> keys) {
  std::vector<std::optional<StoredSegment>> result(keys.size());
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mutex_);
  ExpireLocked(garbage);
  tree_->BeginTouch(clock_());
  for (size_t i = 0; i < keys.size(); ++i) {
    SegmentEntry* const entry = FindLocked(keys[i]);
    if (entry == nullptr) continue;
    tree_->Touch(*entry);
    result[i] = entry->ToSegment();
  }
  return result;
}

std::optional<StoredSegment> SegmentStore::Peek(const BlockKey& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const SegmentEntry* const entry = FindLocked(key);
  if (entry == nullptr) return std::nullopt;
  return entry->ToSegment();
}

absl::StatusOr<SegmentSummary> SegmentStore::Describe(const BlockKey& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const SegmentEntry* const entry = FindLocked(key);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrCat("segment ", key.ToHex(), " is not stored"));
  }
  return entry->Summarize();
}

absl::StatusOr<CommitResult> SegmentStore::Commit(std::vector<StoredSegment> batch,
                                                  int64_t tenant_limit, absl::Time expires) {
  // Before the lock: making room evicts, which takes it.
  const auto new_at_most =
      std::count_if(batch.begin(), batch.end(),
                    [](const StoredSegment& segment) { return segment.HoldsAnything(); });
  const bool mortal = expires != absl::InfiniteFuture();
  auto overhead = budget_->TryReserve(
      new_at_most * (kSegmentOverheadBytes + (mortal ? kMortalOverheadBytes : 0)));
  if (!overhead.ok()) return overhead.status();
  std::lock_guard<std::mutex> lock(mutex_);
  absl::flat_hash_map<BlockKey, const StoredSegment*> earlier;
  for (const StoredSegment& segment : batch) {
    const SegmentEntry* const stored = tree_->Find(segment.key);
    if (stored == nullptr && !segment.HoldsAnything()) {
      return absl::FailedPreconditionError(
          absl::StrCat("segment ", segment.index, " is no longer stored; put it again"));
    }
    const auto in_batch = earlier.find(segment.parent);
    const SegmentEntry* const parent = tree_->Find(segment.parent);
    std::optional<Place> place;
    if (parent != nullptr) {
      place = Place{parent->space->context.get(), parent->index, parent->tail};
    } else if (in_batch != earlier.end()) {
      const StoredSegment& found = *in_batch->second;
      place = Place{found.context.get(), found.index, found.tail};
    }
    if (auto s = CheckParent(segment, place); !s.ok()) return s;
    earlier.emplace(segment.key, &segment);
  }
  if (auto s = CheckTenantLocked(batch, tenant_limit); !s.ok()) return s;
  CommitResult result;
  const int64_t until = ToExpiry(expires);
  tree_->BeginTouch(clock_());
  for (size_t i = 0; i < batch.size(); ++i) {
    StoredSegment& segment = batch[i];
    if (SegmentEntry* const entry = tree_->Find(segment.key); entry != nullptr) {
      ++result.deduplicated;
      tree_->Touch(*entry);
      tree_->Extend(*entry, until);
      for (const SegmentForm form : kHeldForms) {
        FormPtr& given = segment.forms[form];
        if (given != nullptr && tree_->AddForm(*entry, std::move(given))) ++result.forms_added;
      }
      tree_->TightenBound(*entry, segment.error_bound);
    } else {
      ++result.stored;
      for (const SegmentForm form : kHeldForms)
        result.forms_added += segment.forms[form] != nullptr;
      tree_->Extend(tree_->Insert(std::move(segment)), until);
    }
  }
  overhead_.Absorb(*std::move(overhead));
  SettleLocked();
  StoreMetrics::Add(metrics_->segments_stored, result.stored);
  StoreMetrics::Add(metrics_->segments_deduplicated, result.deduplicated);
  return result;
}

absl::Status SegmentStore::CheckTenantLocked(std::span<const StoredSegment> batch,
                                             int64_t limit) const {
  if (limit <= 0 || batch.empty()) return absl::OkStatus();
  int64_t more = 0;
  for (const StoredSegment& segment : batch) {
    const SegmentEntry* const stored = tree_->Find(segment.key);
    for (const SegmentForm form : kHeldForms) {
      const FormPtr& given = segment.forms[form];
      if (given == nullptr) continue;
      if (stored == nullptr || stored->forms.Place(form) == nullptr) more += given->bytes();
    }
  }
  const int64_t held = tree_->TenantBytes(TenantOf(batch.front().context->ns));
  return CheckTenantRoom(held, 0, more, limit);
}

absl::StatusOr<TenantPledge> SegmentStore::Pledge(absl::string_view tenant, int64_t bytes,
                                                  int64_t limit) {
  TenantPledge pledge;
  if (limit <= 0) return pledge;
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t& pledged = pledged_[std::string(tenant)];
  absl::Status room = CheckTenantRoom(tree_->TenantBytes(tenant), pledged, bytes, limit);
  if (!room.ok() || bytes == 0) {
    if (pledged == 0) pledged_.erase(std::string(tenant));
    if (!room.ok()) return room;
    return pledge;
  }
  pledged += bytes;
  pledge.store_ = this;
  pledge.tenant_ = std::string(tenant);
  pledge.bytes_ = bytes;
  return pledge;
}

void SegmentStore::Unpledge(const std::string& tenant, int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = pledged_.find(tenant);
  it->second -= bytes;
  if (it->second == 0) pledged_.erase(it);
}

absl::Status SegmentStore::Anchor(std::span<const StoredSegment> places) {
  auto overhead = budget_->TryReserve(static_cast<int64_t>(places.size()) *
                                      (kSegmentOverheadBytes + kMortalOverheadBytes));
  if (!overhead.ok()) return overhead.status();
  std::lock_guard<std::mutex> lock(mutex_);
  overhead_.Absorb(*std::move(overhead));
  tree_->BeginTouch(clock_());
  absl::Status status;
  for (const StoredSegment& segment : places) {
    if (SegmentEntry* const existing = tree_->Find(segment.key); existing != nullptr) {
      tree_->Extend(*existing, ToExpiry(segment.expires));  // a tier may have it for longer
      continue;
    }
    std::optional<Place> place;
    if (const SegmentEntry* const parent = tree_->Find(segment.parent); parent != nullptr) {
      place = Place{parent->space->context.get(), parent->index, parent->tail};
    }
    status = CheckParent(segment, place);
    if (!status.ok()) break;
    StoredSegment hole = segment;
    hole.forms = {};
    const int64_t until = ToExpiry(segment.expires);
    tree_->Extend(tree_->Insert(std::move(hole)), until);
  }
  SettleLocked();
  return status;
}

absl::StatusOr<bool> SegmentStore::AddForm(const BlockKey& key, FormPtr form) {
  std::lock_guard<std::mutex> lock(mutex_);
  SegmentEntry* const entry = tree_->Find(key);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrCat("segment ", key.ToHex(), " is not stored"));
  }
  return tree_->AddForm(*entry, std::move(form));
}

void SegmentStore::DropDamaged(const BlockKey& key, const FormPtr& form) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mutex_);
  SegmentEntry* const entry = tree_->Find(key);
  if (entry == nullptr || entry->forms.Get(form->form()) != form) return;
  tree_->DropForm(*entry, form->form(), RemovalReason::kDamaged, garbage);
  if (entry->forms.empty() && entry->children == 0 && entry->holds == 0) {
    tree_->Remove(*entry, RemovalReason::kDamaged, garbage);
    SettleLocked();
  }
}

absl::StatusOr<DeleteResult> SegmentStore::Delete(std::span<const BlockKey> keys, bool recursive) {
  Garbage garbage;  // destroyed after the lock
  DeleteResult result;
  std::lock_guard<std::mutex> lock(mutex_);
  ExpireLocked(garbage);
  std::vector<SegmentEntry*> doomed;
  absl::flat_hash_set<const SegmentEntry*> seen;
  for (const BlockKey& key : keys) {
    SegmentEntry* const entry = tree_->Find(key);
    if (entry != nullptr && seen.insert(entry).second) doomed.push_back(entry);
  }
  for (size_t i = 0; recursive && i < doomed.size(); ++i) {
    for (SegmentEntry* c = doomed[i]->first_child; c != nullptr; c = c->next_sibling) {
      if (seen.insert(c).second) doomed.push_back(c);
    }
  }
  for (const SegmentEntry* entry : doomed) {
    const auto refuse = [&](const char* why) {
      return absl::FailedPreconditionError(
          absl::StrCat("segment ", entry->key.ToHex(), " ", why, "; nothing was deleted"));
    };
    if (entry->holds > 0) return refuse("is leased or in use by a put");
    for (const SegmentEntry* c = entry->first_child; c != nullptr; c = c->next_sibling) {
      if (!seen.contains(c)) return refuse("has segments behind it; delete recursively");
    }
  }
  // Children before parents.
  std::sort(doomed.begin(), doomed.end(),
            [](const SegmentEntry* a, const SegmentEntry* b) { return a->index > b->index; });
  for (SegmentEntry* const entry : doomed) {
    ++result.segments;
    result.bytes += entry->forms.bytes();
    tree_->Remove(*entry, RemovalReason::kDeleted, garbage);
  }
  SettleLocked();
  StoreMetrics::Add(metrics_->segments_deleted, result.segments);
  return result;
}

int64_t SegmentStore::Evict(int64_t bytes) {
  Garbage garbage;  // destroyed after the lock
  std::lock_guard<std::mutex> lock(mutex_);
  const int64_t overhead = overhead_.bytes();
  ExpireLocked(garbage);
  int64_t freed = overhead - overhead_.bytes();
  for (const FormPtr& form : garbage) freed += form->bytes();
  const SegmentTree::Evicted evicted =
      tree_->Evict(std::max<int64_t>(0, bytes - freed), kSegmentOverheadBytes, garbage);
  const int64_t before = overhead_.bytes();
  SettleLocked();
  const int64_t evicted_bytes = evicted.bytes + before - overhead_.bytes();
  StoreMetrics::Add(metrics_->evicted_bytes, evicted_bytes);
  StoreMetrics::Add(metrics_->evicted_segments, evicted.segments);
  StoreMetrics::Add(metrics_->evicted_exact_forms, evicted.exact_forms);
  return freed + evicted_bytes;
}

StoreStats SegmentStore::Stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  StoreStats stats = tree_->stats();
  stats.leases = leases_.size();
  return stats;
}

int64_t SegmentStore::TenantBytes(absl::string_view tenant) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return tree_->TenantBytes(tenant);
}

std::vector<SegmentSummary> SegmentStore::List(int64_t limit) const {
  constexpr size_t kAtOnce = 1024;  // a fraction of a millisecond
  std::vector<SegmentSummary> rows;
  for (size_t position = 0; Walk(position, kAtOnce, rows);) continue;
  std::sort(rows.begin(), rows.end(), [](const SegmentSummary& a, const SegmentSummary& b) {
    return std::tie(a.context->root, a.index, a.key) < std::tie(b.context->root, b.index, b.key);
  });
  if (limit > 0 && limit < static_cast<int64_t>(rows.size())) rows.resize(limit);
  return rows;
}

bool SegmentStore::Walk(size_t& position, size_t most, std::vector<SegmentSummary>& rows) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const EntrySlab& entries = tree_->entries();
  const size_t end = std::min(entries.size(), position + most);
  for (; position < end; ++position) {
    if (const SegmentEntry* const entry = entries.At(position); entry != nullptr) {
      rows.push_back(entry->Summarize());
    }
  }
  return position < entries.size();
}

std::vector<std::shared_ptr<const NamespaceContext>> SegmentStore::Namespaces() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::shared_ptr<const NamespaceContext>> contexts;
  for (const auto& [root, space] : tree_->namespaces()) contexts.push_back(space->context);
  return contexts;
}

SegmentEntry* SegmentStore::FindLocked(const BlockKey& key) const {
  SegmentEntry* const entry = tree_->Find(key);
  if (entry == nullptr || entry->expires_at == kNever) return entry;
  return SegmentTree::IsExpired(*entry, absl::ToUnixNanos(clock_())) ? nullptr : entry;
}

void SegmentStore::SettleLocked() {
  const int64_t due =
      tree_->stats().segments * kSegmentOverheadBytes + tree_->mortal() * kMortalOverheadBytes;
  overhead_.Shrink(overhead_.bytes() - due);
}

}  // namespace fourierkv
