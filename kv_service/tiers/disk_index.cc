#include "kv_service/tiers/disk_index.h"

#include <algorithm>
#include <iterator>

#include "kv_service/core/segment_entry.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/core/tenant_salt.h"

namespace fourierkv {
namespace {

constexpr int64_t kDescriptionBytes = 512;  // about, with its keys

}  // namespace

int64_t DiskIndex::BytesOf(const TierSegment& segment) {
  int64_t bytes = kDescriptionBytes;
  for (const SegmentForm form : kHeldForms) {
    if (const int64_t held = segment.forms[form].bytes; held > 0) {
      bytes += RecordBytes(segment.segment, held);
    }
  }
  return bytes;
}

const DiskIndex::Entry* DiskIndex::Find(const BlockKey& key) const {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : &it->second;
}

TierSegment DiskIndex::Describe(const Entry& entry) const {
  TierSegment result;
  StoredSegment& segment = result.segment;
  segment.key = *entry.key;
  segment.parent = entry.parent != nullptr ? *entry.parent->key : entry.context->root;
  segment.context = entry.context;
  segment.index = entry.index;
  segment.tokens = entry.tokens;
  segment.tail = entry.tail;
  segment.capacity = entry.capacity;
  segment.error_bound = entry.error_bound;
  segment.expires = FromExpiry(entry.expires_at);
  for (size_t i = 0; i < std::size(kHeldForms); ++i) {
    result.forms[kHeldForms[i]] = {.bytes = entry.forms[i].bytes,
                                   .mean_relative_error = entry.forms[i].mean_relative_error,
                                   .max_relative_error = entry.forms[i].max_relative_error};
  }
  return result;
}

bool DiskIndex::HasParent(const StoredSegment& segment) const {
  return segment.parent == segment.context->root || entries_.contains(segment.parent);
}

void DiskIndex::Join(const Entry& entry) {
  leaves_.insert({entry.last_use, &entry});
  entry.share->leaves.insert({entry.last_use, &entry});
  if (entry.expires_at != kNever) mortal_leaves_.insert({entry.expires_at, &entry});
}

void DiskIndex::Leave(const Entry& entry) {
  leaves_.erase({entry.last_use, &entry});
  entry.share->leaves.erase({entry.last_use, &entry});
  mortal_leaves_.erase({entry.expires_at, &entry});
}

void DiskIndex::Link(Entry& entry, Entry& parent) {
  entry.parent = &parent;
  if (parent.children++ == 0) Leave(parent);
  entry.next_sibling = parent.first_child;
  if (entry.next_sibling != nullptr) entry.next_sibling->previous_sibling = &entry;
  parent.first_child = &entry;
}

void DiskIndex::Unlink(Entry& entry) {
  Entry& parent = *entry.parent;
  Entry*& link =
      entry.previous_sibling != nullptr ? entry.previous_sibling->next_sibling : parent.first_child;
  link = entry.next_sibling;
  if (entry.next_sibling != nullptr) entry.next_sibling->previous_sibling = entry.previous_sibling;
  if (--parent.children == 0) Join(parent);
}

void DiskIndex::SetBytes(Entry& entry, int64_t bytes) {
  bytes_ += bytes - entry.total_bytes;
  entry.share->bytes += bytes - entry.total_bytes;
  entry.total_bytes = bytes;
}

void DiskIndex::Extend(Entry& entry, int64_t expires_at) {
  // Whoever lives as long has passed it on to its ancestors.
  for (Entry* e = &entry; e != nullptr && e->expires_at < expires_at; e = e->parent) {
    const bool queued = mortal_leaves_.erase({e->expires_at, e}) > 0;
    e->expires_at = expires_at;
    if (queued && expires_at != kNever) mortal_leaves_.insert({expires_at, e});
  }
}

void DiskIndex::Put(const TierSegment& described) {
  const StoredSegment& segment = described.segment;
  const auto [it, added] = entries_.try_emplace(segment.key);
  Entry& entry = it->second;
  if (added) {
    entry.key = &it->first;
    entry.context = segment.context;
    entry.index = static_cast<int32_t>(segment.index);
    entry.tokens = segment.tokens;
    entry.capacity = static_cast<int32_t>(segment.capacity);
    entry.tail = segment.tail;
    if (free_slots_.empty()) {
      free_slots_.push_back(slots_.size());
      slots_.push_back(nullptr);
    }
    entry.slot = free_slots_.back();
    free_slots_.pop_back();
    slots_[entry.slot] = &entry;
    entry.share = &shares_[std::string(TenantOf(segment.context->ns))];
    ++entry.share->segments;
    if (const auto parent = entries_.find(segment.parent); parent != entries_.end()) {
      Link(entry, parent->second);
    }
  }
  entry.error_bound = segment.error_bound;
  for (size_t i = 0; i < std::size(kHeldForms); ++i) {
    const FormSummary& form = described.forms[kHeldForms[i]];
    entry.forms[i] = {form.bytes, form.mean_relative_error, form.max_relative_error};
  }
  SetBytes(entry, BytesOf(described));
  Extend(entry, ToExpiry(segment.expires));
  Use(entry);
}

void DiskIndex::Erase(const BlockKey& key) {
  const auto it = entries_.find(key);
  Entry& entry = it->second;
  Leave(entry);
  SetBytes(entry, 0);
  if (entry.parent != nullptr) Unlink(entry);
  slots_[entry.slot] = nullptr;
  free_slots_.push_back(entry.slot);
  if (--entry.share->segments == 0) shares_.erase(std::string(TenantOf(entry.context->ns)));
  entries_.erase(it);
}

int64_t DiskIndex::TenantBytes(absl::string_view tenant) const {
  const auto it = shares_.find(std::string(tenant));
  return it == shares_.end() ? 0 : it->second.bytes;
}

bool DiskIndex::IsExpired(const Entry& entry, absl::Time now) {
  return entry.expires_at != kNever && entry.expires_at <= absl::ToUnixNanos(now) &&
         entry.protected_until <= absl::ToUnixSeconds(now);
}

std::vector<BlockKey> DiskIndex::Expired(absl::Time now, size_t most) const {
  std::vector<BlockKey> keys;
  for (const auto& [expires_at, entry] : mortal_leaves_) {
    if (expires_at > absl::ToUnixNanos(now) || keys.size() >= most) break;
    if (IsExpired(*entry, now)) keys.push_back(*entry->key);
  }
  return keys;
}

std::vector<BlockKey> DiskIndex::Subtree(const BlockKey& key) const {
  std::vector<const Entry*> found;
  if (const Entry* const entry = Find(key); entry != nullptr) found.push_back(entry);
  for (size_t i = 0; i < found.size(); ++i) {
    for (const Entry* c = found[i]->first_child; c != nullptr; c = c->next_sibling) {
      found.push_back(c);
    }
  }
  std::vector<BlockKey> keys;
  for (auto entry = found.rbegin(); entry != found.rend(); ++entry) keys.push_back(*(*entry)->key);
  return keys;
}

void DiskIndex::Touch(const BlockKey& key, absl::Time until) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  const int64_t seconds = absl::ToUnixSeconds(until);
  for (Entry* e = &it->second; e != nullptr && e->protected_until < seconds; e = e->parent) {
    e->protected_until = seconds;
  }
  Use(it->second);
}

std::optional<BlockKey> DiskIndex::NextVictim(absl::Time now, const BlockKey& spared,
                                              std::optional<absl::string_view> tenant) const {
  const Leaves* leaves = &leaves_;
  if (tenant.has_value()) {
    const auto it = shares_.find(std::string(*tenant));
    if (it == shares_.end()) return std::nullopt;
    leaves = &it->second.leaves;
  }
  const int64_t seconds = absl::ToUnixSeconds(now);
  for (const auto& [last_use, entry] : *leaves) {
    if (entry->protected_until <= seconds && *entry->key != spared) return *entry->key;
  }
  return std::nullopt;
}

void DiskIndex::Use(Entry& entry) {
  if (entry.children == 0) Leave(entry);
  entry.last_use = ++uses_;
  if (entry.children == 0) Join(entry);
}

}  // namespace fourierkv
