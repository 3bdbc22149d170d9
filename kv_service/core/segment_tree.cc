#include "kv_service/core/segment_tree.h"

#include <algorithm>
#include <utility>

namespace fourierkv {
namespace {

FormSummary Summary(const FormPtr& form) {
  if (form == nullptr) return {};
  return {form->bytes(), form->mean_relative_error(), form->max_relative_error()};
}

}  // namespace

SegmentSummary SegmentEntry::Summarize() const {
  SegmentSummary summary{.key = segment.key,
                         .parent = segment.parent,
                         .context = segment.context,
                         .index = segment.index,
                         .tokens = segment.tokens,
                         .tail = segment.tail,
                         .forms = {},
                         .children = children,
                         .holds = holds,
                         .last_use = last_used_at};
  for (const SegmentForm form : kHeldForms) summary.forms[form] = Summary(segment.forms[form]);
  return summary;
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
  for (const SegmentForm form : kHeldForms) Count(entry.segment.forms[form], 1);
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

bool SegmentTree::AddForm(SegmentEntry& entry, FormPtr form) {
  FormPtr& slot = entry.segment.forms[form->form()];
  const bool redundant = IsExactData(form->form()) && entry.segment.exact_data() != nullptr;
  if (slot != nullptr || redundant) return false;
  slot = std::move(form);
  Count(slot, 1);
  Refresh(entry);
  return true;
}

void SegmentTree::TightenBound(SegmentEntry& entry, float bound) {
  entry.segment.error_bound = std::min(entry.segment.error_bound, bound);
  Refresh(entry);
}

FormPtr SegmentTree::TakeForm(SegmentEntry& entry, SegmentForm form) {
  FormPtr taken = std::move(entry.segment.forms[form]);
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
  for (const SegmentForm form : kHeldForms) Count(entry.segment.forms[form], -1);
  const auto it = entries_.find(entry.segment.key);
  garbage.entries.push_back(std::move(it->second));
  entries_.erase(it);
}

SegmentTree::Evicted SegmentTree::Evict(int64_t bytes, Garbage& garbage) {
  Evicted evicted;
  while (evicted.bytes < bytes) {
    if (auto* exact = static_cast<SegmentEntry*>(index_.NextExact()); exact != nullptr) {
      const FormPtr& form = exact->segment.exact_data();
      evicted.bytes += form->bytes();
      ++evicted.exact_forms;
      garbage.forms.push_back(TakeForm(*exact, form->form()));
    } else if (auto* last = static_cast<SegmentEntry*>(index_.NextRemovable()); last != nullptr) {
      evicted.bytes += last->segment.bytes() + last->overhead.bytes();
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
  FormTotals& totals = stats_.forms[form->form()];
  totals.count += sign;
  totals.bytes += sign * form->bytes();
}

void SegmentTree::Refresh(SegmentEntry& entry, uint64_t last_use) {
  const StoredSegment& s = entry.segment;
  const FormPtr& compact = s.forms[SegmentForm::kCompact];
  const FormPtr& compressed = compact != nullptr ? compact : s.forms[SegmentForm::kArchived];
  // Whole sequences are never continued: a decoder reads the compact form.
  const bool superseded = s.capacity > 0 || (entry.full_children > 0 && s.index > 0);
  const bool exact_droppable = entry.holds == 0 && s.exact_data() != nullptr &&
                               compressed != nullptr && superseded &&
                               compressed->max_relative_error() <= s.error_bound;
  const bool removable = entry.holds == 0 && entry.children == 0;
  if (entry.last_use == last_use && entry.exact_droppable == exact_droppable &&
      entry.removable == removable) {
    return;
  }
  index_.Update(entry, last_use, exact_droppable, removable);
}

}  // namespace fourierkv
