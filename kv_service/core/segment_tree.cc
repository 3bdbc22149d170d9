#include "kv_service/core/segment_tree.h"

#include <algorithm>
#include <utility>

#include "kv_service/core/tenant_salt.h"

namespace fourierkv {
namespace {

constexpr int64_t kOneUse = 1'000'000'000;  // nanoseconds
constexpr int kExpiredAtOnce = 512;         // looked at in one call: a fraction of a millisecond

}  // namespace

SegmentEntry* SegmentTree::Find(const BlockKey& key) const {
  const Shard& shard = shards_[ShardOf(key)];
  const auto it = shard.find(key);
  return it == shard.end() ? nullptr : *it;
}

IndexedNamespace* SegmentTree::Enter(const std::shared_ptr<const NamespaceContext>& context) {
  std::unique_ptr<IndexedNamespace>& space = namespaces_[context->root];
  if (space == nullptr) {
    TenantShare& share = tenants_[std::string(TenantOf(context->ns))];
    ++share.namespaces;
    space = std::make_unique<IndexedNamespace>(IndexedNamespace{context, 0, &share});
  }
  ++space->segments;
  return space.get();
}

void SegmentTree::Leave(IndexedNamespace& space) {
  if (--space.segments > 0) return;
  const std::shared_ptr<const NamespaceContext> context = space.context;
  if (--space.share->namespaces == 0) tenants_.erase(std::string(TenantOf(context->ns)));
  namespaces_.erase(context->root);
}

int64_t SegmentTree::TenantBytes(absl::string_view tenant) const {
  const auto it = tenants_.find(std::string(tenant));
  return it == tenants_.end() ? 0 : it->second.bytes;
}

SegmentEntry& SegmentTree::Insert(StoredSegment segment) {
  SegmentEntry& entry = slab_.New();
  entry.serial = next_serial_++;
  entry.key = segment.key;
  entry.space = Enter(segment.context);
  entry.index = static_cast<int32_t>(segment.index);
  entry.tokens = segment.tokens;
  entry.tail = segment.tail;
  entry.capacity = static_cast<int32_t>(segment.capacity);
  entry.error_bound = segment.error_bound;
  entry.expires_at = 0;
  ++mortal_;
  for (const SegmentForm form : kHeldForms) {
    FormPtr& given = segment.forms[form];
    if (given == nullptr || entry.forms.Place(form) != nullptr) continue;
    Count(entry, given, 1);
    entry.forms.Set(std::move(given));
  }
  entry.parent = Find(segment.parent);
  shards_[ShardOf(entry.key)].insert(&entry);
  ++stats_.segments;
  if (entry.tail) ++stats_.tails;
  if (SegmentEntry* const parent = entry.parent; parent != nullptr) {
    entry.next_sibling = parent->first_child;
    if (parent->first_child != nullptr) parent->first_child->previous_sibling = &entry;
    parent->first_child = &entry;
    ++parent->children;
    if (!entry.tail) ++parent->full_children;
    Refresh(*parent);
  }
  Touch(entry);
  Refresh(entry);
  if (observer_ != nullptr && !entry.forms.empty()) observer_->Held(entry);
  return entry;
}

bool SegmentTree::AddForm(SegmentEntry& entry, FormPtr form) {
  if (entry.forms.Place(form->form()) != nullptr) return false;
  Count(entry, form, 1);
  entry.forms.Set(std::move(form));
  Refresh(entry);
  if (observer_ != nullptr) observer_->Held(entry);
  return true;
}

void SegmentTree::DropForm(SegmentEntry& entry, SegmentForm form, RemovalReason reason,
                           Garbage& garbage) {
  FormPtr taken = entry.forms.Take(form);
  if (taken == nullptr) return;
  Count(entry, taken, -1);
  garbage.push_back(std::move(taken));
  Refresh(entry);
  if (observer_ == nullptr) return;
  if (entry.forms.empty()) {
    observer_->Gone(entry, reason);
  } else {
    observer_->Held(entry);
  }
}

void SegmentTree::TightenBound(SegmentEntry& entry, float bound) {
  entry.error_bound = std::min(entry.error_bound, bound);
  Refresh(entry);
}

void SegmentTree::BeginTouch(absl::Time now) {
  ++tick_;
  now_ = absl::ToUnixNanos(now);
}

void SegmentTree::Touch(SegmentEntry& entry) {
  // No tick is newer, so an entry that has this one has passed it on to its ancestors.
  for (SegmentEntry* e = &entry; e != nullptr && e->last_use != tick_; e = e->parent) {
    index_.Use(*e, tick_, e->uses == 0 || now_ / kOneUse != e->last_used_at / kOneUse);
    e->last_used_at = now_;
  }
}

void SegmentTree::Extend(SegmentEntry& entry, int64_t when) {
  // Whoever lives as long has passed it on to its ancestors. None of these is a leaf.
  for (SegmentEntry* e = &entry; e != nullptr && e->expires_at < when; e = e->parent) {
    const bool queued = expiring_.erase({e->expires_at, e}) > 0;
    if (when == kNever) --mortal_;
    e->expires_at = when;
    if (queued && when != kNever) expiring_.insert({when, e});
  }
}

bool SegmentTree::RemoveExpired(int64_t now, Garbage& garbage) {
  // A parent is queued when its last child goes.
  for (int left = kExpiredAtOnce; !expiring_.empty(); --left) {
    const auto [when, entry] = *expiring_.begin();
    if (when > now) break;
    if (left == 0) return true;
    Remove(*entry, RemovalReason::kDeleted, garbage);
  }
  return false;
}

void SegmentTree::Hold(SegmentEntry& entry) {
  if (++entry.holds > 1) return;
  if (entry.kept_children == 0) PassOnKept(entry, 1);
  Refresh(entry);
}

void SegmentTree::Unhold(SegmentEntry& entry) {
  if (--entry.holds > 0) return;
  if (entry.kept_children == 0) PassOnKept(entry, -1);
  Refresh(entry);
}

void SegmentTree::PassOnKept(SegmentEntry& entry, int sign) {
  for (SegmentEntry* e = entry.parent; e != nullptr; e = e->parent) {
    const bool anyway = e->holds > 0 || e->kept_children > (sign > 0 ? 0 : 1);
    e->kept_children += sign;
    if (anyway) break;
  }
}

void SegmentTree::Remove(SegmentEntry& entry, RemovalReason reason, Garbage& garbage) {
  // A hole was reported when it lost what it held.
  if (observer_ != nullptr && !entry.forms.empty()) observer_->Gone(entry, reason);
  index_.Update(entry, false, false);
  expiring_.erase({entry.expires_at, &entry});
  if (entry.expires_at != kNever) --mortal_;
  if (SegmentEntry* const parent = entry.parent; parent != nullptr) {
    SegmentEntry*& link = entry.previous_sibling != nullptr ? entry.previous_sibling->next_sibling
                                                            : parent->first_child;
    link = entry.next_sibling;
    if (entry.next_sibling != nullptr)
      entry.next_sibling->previous_sibling = entry.previous_sibling;
    --parent->children;
    if (!entry.tail) --parent->full_children;
    Refresh(*parent);
  }
  --stats_.segments;
  if (entry.tail) --stats_.tails;
  for (const SegmentForm form : kHeldForms) {
    if (FormPtr taken = entry.forms.Take(form); taken != nullptr) {
      Count(entry, taken, -1);
      garbage.push_back(std::move(taken));
    }
  }
  Leave(*entry.space);
  shards_[ShardOf(entry.key)].erase(&entry);
  slab_.Free(entry);
}

SegmentTree::Evicted SegmentTree::Evict(int64_t bytes, int64_t overhead, Garbage& garbage) {
  Evicted evicted;
  while (evicted.bytes + evicted.segments * overhead < bytes) {
    if (auto* exact = static_cast<SegmentEntry*>(index_.NextExact()); exact != nullptr) {
      const FormPtr& form = exact->forms.exact_data();
      evicted.bytes += form->bytes();
      ++evicted.exact_forms;
      DropForm(*exact, form->form(), RemovalReason::kEvicted, garbage);
    } else if (auto* last = static_cast<SegmentEntry*>(index_.NextRemovable()); last != nullptr) {
      evicted.bytes += last->forms.bytes();
      ++evicted.segments;
      index_.Age(*last);
      Remove(*last, RemovalReason::kEvicted, garbage);
    } else {
      break;
    }
  }
  return evicted;
}

void SegmentTree::Count(const SegmentEntry& entry, const FormPtr& form, int sign) {
  entry.space->share->bytes += sign * form->bytes();
  FormTotals& totals = stats_.forms[form->form()];
  totals.count += sign;
  totals.bytes += sign * form->bytes();
}

void SegmentTree::Refresh(SegmentEntry& entry) {
  const FormPtr& compact = entry.forms.Place(SegmentForm::kCompact);
  const FormPtr& compressed =
      compact != nullptr ? compact : entry.forms.Place(SegmentForm::kArchived);
  // Whole sequences are never continued: a decoder reads the compact form.
  const bool superseded = entry.capacity > 0 || (entry.full_children > 0 && entry.index > 0);
  const bool exact_droppable = entry.holds == 0 && entry.forms.exact_data() != nullptr &&
                               compressed != nullptr && superseded &&
                               compressed->max_relative_error() <= entry.error_bound;
  const bool removable = entry.holds == 0 && entry.children == 0;
  index_.Update(entry, exact_droppable, removable);
  if (entry.expires_at == kNever) return;
  if (removable) {
    expiring_.insert({entry.expires_at, &entry});
  } else {
    expiring_.erase({entry.expires_at, &entry});
  }
}

}  // namespace fourierkv
