#include "kv_service/core/segment_entry.h"

#include <algorithm>
#include <utility>

namespace fourierkv {
namespace {

FormSummary Summary(const FormPtr& form) {
  if (form == nullptr) return {};
  return {form->bytes(), form->mean_relative_error(), form->max_relative_error()};
}

}  // namespace

const FormPtr& HeldFormSet::Get(SegmentForm form) const {
  static const FormPtr kNone;
  const FormPtr& place = Place(form);
  return place != nullptr && place->form() == form ? place : kNone;
}

bool HeldFormSet::empty() const {
  return std::all_of(forms_.begin(), forms_.end(), [](const FormPtr& f) { return f == nullptr; });
}

int64_t HeldFormSet::bytes() const {
  int64_t bytes = 0;
  for (const FormPtr& form : forms_) {
    if (form != nullptr) bytes += form->bytes();
  }
  return bytes;
}

void HeldFormSet::Set(FormPtr form) {
  FormPtr& place = forms_[Index(form->form())];
  place = std::move(form);
}

FormPtr HeldFormSet::Take(SegmentForm form) {
  FormPtr& place = forms_[Index(form)];
  if (place == nullptr || place->form() != form) return nullptr;
  return std::exchange(place, nullptr);
}

size_t HeldFormSet::Index(SegmentForm form) {
  if (form == SegmentForm::kArchived) return 0;
  return form == SegmentForm::kCompact ? 1 : kExactData;
}

StoredSegment SegmentEntry::ToSegment() const {
  StoredSegment segment{.key = key,
                        .parent = parent_key(),
                        .context = space->context,
                        .index = index,
                        .tokens = tokens,
                        .tail = tail,
                        .capacity = capacity,
                        .forms = {},
                        .error_bound = error_bound,
                        .expires = FromExpiry(expires_at)};
  for (const SegmentForm form : kHeldForms) segment.forms[form] = forms.Get(form);
  return segment;
}

SegmentSummary SegmentEntry::Summarize() const {
  SegmentSummary summary{.key = key,
                         .parent = parent_key(),
                         .context = space->context,
                         .index = index,
                         .tokens = tokens,
                         .tail = tail,
                         .forms = {},
                         .children = children,
                         .holds = holds,
                         .last_use = absl::FromUnixNanos(last_used_at)};
  for (const SegmentForm form : kHeldForms) summary.forms[form] = Summary(forms.Get(form));
  return summary;
}

SegmentEntry& EntrySlab::New() {
  if (free_ == nullptr) {
    blocks_.push_back(std::make_unique<std::array<SegmentEntry, kBlock>>());
    for (auto it = blocks_.back()->rbegin(); it != blocks_.back()->rend(); ++it) {
      it->next_sibling = free_;
      free_ = &*it;
    }
  }
  SegmentEntry& entry = *free_;
  free_ = entry.next_sibling;
  entry.next_sibling = nullptr;
  entry.live = true;
  return entry;
}

void EntrySlab::Free(SegmentEntry& entry) {
  entry = SegmentEntry();
  entry.next_sibling = free_;
  free_ = &entry;
}

SegmentEntry* EntrySlab::At(size_t number) const {
  SegmentEntry& entry = (*blocks_[number / kBlock])[number % kBlock];
  return entry.live ? &entry : nullptr;
}

}  // namespace fourierkv
