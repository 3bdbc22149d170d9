// Bringing from the tiers what readers want and memory has not.

#include <algorithm>
#include <utility>

#include "kv_service/core/form_planner.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/tiered_store.h"

namespace fourierkv {
namespace {

constexpr int kMemory = -1;
constexpr int kNowhere = -2;

// One want, and where each form of its segment is.
struct Search {
  const SegmentWant* want;
  FetchedSegment* fetched;
  std::vector<std::optional<TierSegment>> in_tiers;
  bool done = false;

  // kMemory, the number of a tier, or kNowhere.
  int Place(SegmentForm form) const {
    if (fetched->segment.has_value() && fetched->segment->forms[form] != nullptr) return kMemory;
    for (size_t tier = 0; tier < in_tiers.size(); ++tier) {
      if (in_tiers[tier].has_value() && in_tiers[tier]->forms[form].bytes > 0) {
        return static_cast<int>(tier);
      }
    }
    return kNowhere;
  }

  float ErrorOf(SegmentForm form) const {
    const int place = Place(form);
    return place == kMemory ? fetched->segment->forms[form]->max_relative_error()
                            : in_tiers[static_cast<size_t>(place)]->forms[form].max_relative_error;
  }

  // The form to load next and its tier; nullopt if memory serves as well as can be.
  std::optional<std::pair<size_t, SegmentForm>> Next() const {
    if (!fetched->segment.has_value()) return std::nullopt;
    PerForm<bool> held;
    for (const SegmentForm form : kHeldForms) held[form] = Place(form) != kNowhere;
    for (const FormWay& way : WaysToServe(*fetched->segment, held, want->forms)) {
      const bool measured_later =
          !way.held() && (way.form == SegmentForm::kCompact || way.form == SegmentForm::kArchived);
      if (!measured_later && ErrorOf(way.source) > want->max_relative_error) continue;
      const int place = Place(way.source);
      if (place == kMemory) return std::nullopt;
      return std::pair(static_cast<size_t>(place), way.source);
    }
    return std::nullopt;
  }
};

// Whether memory has what the want prefers of all that there may be.
bool MemoryIsBest(const SegmentWant& want, const std::optional<StoredSegment>& segment) {
  if (!segment.has_value()) return false;
  for (const SegmentForm form : want.forms) {
    if (form != SegmentForm::kDense && !MayHold(*segment, form)) continue;
    return segment->forms[form] != nullptr &&
           segment->forms[form]->max_relative_error() <= want.max_relative_error;
  }
  return false;
}

}  // namespace

std::vector<FetchedSegment> TieredStore::Fetch(std::span<const SegmentWant> wants,
                                               const Patience& patience) {
  std::vector<BlockKey> keys;
  keys.reserve(wants.size());
  for (const SegmentWant& want : wants) keys.push_back(want.key);
  std::vector<FetchedSegment> result(wants.size());
  auto stored = memory_->Get(keys);
  for (size_t i = 0; i < wants.size(); ++i) result[i].segment = std::move(stored[i]);
  if (tiers_.empty()) return result;

  std::vector<Search> searches;
  std::vector<BlockKey> asked;
  for (size_t i = 0; i < wants.size(); ++i) {
    if (MemoryIsBest(wants[i], result[i].segment)) continue;
    searches.push_back({&wants[i], &result[i], {}});
    asked.push_back(keys[i]);
  }
  if (asked.empty()) return result;
  const Reader reader = gate_.Enter();
  for (const auto& tier : tiers_) {
    auto held = tier->Describe(asked, patience);
    for (size_t j = 0; j < searches.size(); ++j) {
      searches[j].in_tiers.push_back(held.ok() ? std::move((*held)[j]) : std::nullopt);
      const auto& found = searches[j].in_tiers.back();
      FetchedSegment& fetched = *searches[j].fetched;
      if (found.has_value() && !fetched.segment.has_value()) fetched.segment = found->segment;
    }
    tier->tier().Touch(asked, absl::InfinitePast());
  }
  // Each round loads one form a segment; what fails is looked for elsewhere in the next.
  for (bool more = true; more;) {
    more = false;
    for (size_t tier = 0; tier < tiers_.size(); ++tier) {
      std::vector<OwnedWant> loads;
      std::vector<Search*> owners;
      for (Search& search : searches) {
        const auto next = search.Next();
        if (!next.has_value() || next->first != tier) continue;
        StoredSegment identity = *search.fetched->segment;
        identity.forms = {};
        loads.push_back({std::move(identity), next->second});
        owners.push_back(&search);
      }
      if (loads.empty()) continue;
      more = true;
      std::vector<SegmentForm> forms;
      for (const OwnedWant& load : loads) forms.push_back(load.form);
      KillPoint("fetch.before_load");
      auto loaded =
          tiers_[tier]->Load(std::move(loads), memory_->budget().shared_from_this(), patience);
      KillPoint("fetch.after_load");
      for (size_t j = 0; j < owners.size(); ++j) {
        FetchedSegment& fetched = *owners[j]->fetched;
        if (loaded[j].ok()) {
          fetched.segment->forms[forms[j]] = *loaded[j];
          Promote(reader, *fetched.segment, *loaded[j], patience);
          continue;
        }
        owners[j]->in_tiers[tier]->forms[forms[j]] = {};
        const absl::Status& why = loaded[j].status();
        if (!absl::IsNotFound(why) && !absl::IsDataLoss(why)) fetched.late = true;
      }
    }
  }
  return result;
}

void TieredStore::Promote(const Reader& reader, const StoredSegment& segment, const FormPtr& form,
                          const Patience& patience) {
  // No room, or something before it is gone: the reader has the form all the same.
  if (!memory_->Describe(segment.key).ok()) {
    if (segment.index > 0 && !Anchor(reader, segment.parent, patience).ok()) return;
    StoredSegment place = segment;
    place.forms = {};
    if (!Bring(reader, std::span(&place, 1)).ok()) return;
  }
  KillPoint("fetch.promote");
  gate_.Bring(reader, std::span(&segment.key, 1),
              [&] { memory_->AddForm(segment.key, form).status().IgnoreError(); });
}

}  // namespace fourierkv
