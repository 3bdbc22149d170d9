#include "kv_service/core/segment_tree.h"

#include <utility>

namespace fourierkv {
namespace {

FormSummary Summary(const FormPtr& form) {
  if (form == nullptr) return {};
  return {form->bytes(), form->mean_relative_error(), form->max_relative_error()};
}

FormPtr& Slot(SegmentEntry& entry, SegmentForm form) {
  return form == SegmentForm::kExact ? entry.segment.exact : entry.segment.compact;
}

}  // namespace

int64_t SegmentEntry::Bytes() const {
  return (segment.exact != nullptr ? segment.exact->bytes() : 0) +
         (segment.compact != nullptr ? segment.compact->bytes() : 0);
}

SegmentSummary SegmentEntry::Summarize() const {
  return SegmentSummary{.key = segment.key,
                        .parent = segment.parent,
                        .context = segment.context,
                        .index = segment.index,
                        .tokens = segment.tokens,
                        .tail = segment.tail,
                        .exact = Summary(segment.exact),
                        .compact = Summary(segment.compact),
                        .children = children,
                        .holds = holds,
                        .last_use = last_used_at};
}

SegmentEntry* SegmentTree::Find(const BlockKey& key) const {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : it->second.get();
}

SegmentEntry& SegmentTree::Insert(StoredSegment segment, MemoryReservation overhead) {
  auto owned = std::make_unique<SegmentEntry>();
  SegmentEntry& entry = *owned;
  entry.serial = next_serial_++;
  entry.segment = std::move(segment);
  entry.overhead = std::move(overhead);
  entry.parent = Find(entry.segment.parent);
  entries_.emplace(entry.segment.key, std::move(owned));
  ++stats_.segments;
  if (entry.segment.tail) ++stats_.tails;
  Count(entry.segment.exact, 1);
  Count(entry.segment.compact, 1);
  if (SegmentEntry* const parent = entry.parent; parent != nullptr) {
    entry.next_sibling = parent->first_child;
    if (parent->first_child != nullptr) parent->first_child->previous_sibling = &entry;
    parent->first_child = &entry;
    ++parent->children;
    if (!entry.segment.tail) ++parent->full_children;
    Refresh(*parent);
  }
  Touch(entry);
  return entry;
}

void SegmentTree::AddForm(SegmentEntry& entry, FormPtr form) {
  FormPtr& slot = Slot(entry, form->form());
  slot = std::move(form);
  Count(slot, 1);
  Refresh(entry);
}

FormPtr SegmentTree::TakeForm(SegmentEntry& entry, SegmentForm form) {
  FormPtr taken = std::move(Slot(entry, form));
  Count(taken, -1);
  Refresh(entry);
  return taken;
}

void SegmentTree::BeginTouch(absl::Time now) {
  ++tick_;
  now_ = now;
}

void SegmentTree::Touch(SegmentEntry& entry) {
  // No tick is newer, so an entry that has this one has passed it on to its ancestors.
  for (SegmentEntry* e = &entry; e != nullptr && e->last_use != tick_; e = e->parent) {
    e->last_used_at = now_;
    Refresh(*e, tick_);
  }
}

void SegmentTree::Hold(SegmentEntry& entry) {
  if (++entry.holds == 1) Refresh(entry);
}

void SegmentTree::Unhold(SegmentEntry& entry) {
  if (--entry.holds == 0) Refresh(entry);
}

void SegmentTree::Remove(SegmentEntry& entry, Garbage& garbage) {
  index_.Update(entry, entry.last_use, false, false);
  if (SegmentEntry* const parent = entry.parent; parent != nullptr) {
    SegmentEntry*& link = entry.previous_sibling != nullptr ? entry.previous_sibling->next_sibling
                                                            : parent->first_child;
    link = entry.next_sibling;
    if (entry.next_sibling != nullptr)
      entry.next_sibling->previous_sibling = entry.previous_sibling;
    --parent->children;
    if (!entry.segment.tail) --parent->full_children;
    Refresh(*parent);
  }
  --stats_.segments;
  if (entry.segment.tail) --stats_.tails;
  Count(entry.segment.exact, -1);
  Count(entry.segment.compact, -1);
  const auto it = entries_.find(entry.segment.key);
  garbage.entries.push_back(std::move(it->second));
  entries_.erase(it);
}

SegmentTree::Evicted SegmentTree::Evict(int64_t bytes, Garbage& garbage) {
  Evicted evicted;
  while (evicted.bytes < bytes) {
    if (auto* exact = static_cast<SegmentEntry*>(index_.NextExact()); exact != nullptr) {
      evicted.bytes += exact->segment.exact->bytes();
      ++evicted.exact_forms;
      garbage.forms.push_back(TakeForm(*exact, SegmentForm::kExact));
    } else if (auto* last = static_cast<SegmentEntry*>(index_.NextRemovable()); last != nullptr) {
      evicted.bytes += last->Bytes() + last->overhead.bytes();
      ++evicted.segments;
      Remove(*last, garbage);
    } else {
      break;
    }
  }
  return evicted;
}

void SegmentTree::Count(const FormPtr& form, int sign) {
  if (form == nullptr) return;
  const bool exact = form->form() == SegmentForm::kExact;
  (exact ? stats_.exact_forms : stats_.compact_forms) += sign;
  (exact ? stats_.exact_bytes : stats_.compact_bytes) += sign * form->bytes();
}

void SegmentTree::Refresh(SegmentEntry& entry, uint64_t last_use) {
  const StoredSegment& s = entry.segment;
  const bool exact_droppable = entry.holds == 0 && s.exact != nullptr && s.compact != nullptr &&
                               entry.full_children > 0 && s.index > 0;
  const bool removable = entry.holds == 0 && entry.children == 0;
  if (entry.last_use == last_use && entry.exact_droppable == exact_droppable &&
      entry.removable == removable) {
    return;
  }
  index_.Update(entry, last_use, exact_droppable, removable);
}

}  // namespace fourierkv
