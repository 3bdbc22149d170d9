#include "kv_service/tiers/disk_index.h"

#include <algorithm>
#include <iterator>

#include "kv_service/core/segment_record.h"

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
    if (const auto parent = entries_.find(segment.parent); parent != entries_.end()) {
      entry.parent = &parent->second;
      if (entry.parent->children++ == 0) leaves_.erase({entry.parent->last_use, entry.parent});
      entry.next_sibling = entry.parent->first_child;
      if (entry.next_sibling != nullptr) entry.next_sibling->previous_sibling = &entry;
      entry.parent->first_child = &entry;
    }
  }
  entry.error_bound = segment.error_bound;
  for (size_t i = 0; i < std::size(kHeldForms); ++i) {
    const FormSummary& form = described.forms[kHeldForms[i]];
    entry.forms[i] = {form.bytes, form.mean_relative_error, form.max_relative_error};
  }
  const int64_t total = BytesOf(described);
  bytes_ += total - entry.total_bytes;
  entry.total_bytes = total;
  Use(entry);
}

void DiskIndex::Erase(const BlockKey& key) {
  const auto it = entries_.find(key);
  Entry& entry = it->second;
  leaves_.erase({entry.last_use, &entry});
  bytes_ -= entry.total_bytes;
  if (Entry* const parent = entry.parent; parent != nullptr) {
    Entry*& link = entry.previous_sibling != nullptr ? entry.previous_sibling->next_sibling
                                                     : parent->first_child;
    link = entry.next_sibling;
    if (entry.next_sibling != nullptr) {
      entry.next_sibling->previous_sibling = entry.previous_sibling;
    }
    if (--parent->children == 0) leaves_.insert({parent->last_use, parent});
  }
  entries_.erase(it);
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
  it->second.protected_until = std::max(it->second.protected_until, absl::ToUnixSeconds(until));
  Use(it->second);
}

std::optional<BlockKey> DiskIndex::NextVictim(absl::Time now, const BlockKey& spared) const {
  const int64_t seconds = absl::ToUnixSeconds(now);
  for (const auto& [last_use, entry] : leaves_) {
    if (entry->protected_until <= seconds && *entry->key != spared) return *entry->key;
  }
  return std::nullopt;
}

void DiskIndex::Use(Entry& entry) {
  if (entry.children == 0) leaves_.erase({entry.last_use, &entry});
  entry.last_use = ++uses_;
  if (entry.children == 0) leaves_.insert({entry.last_use, &entry});
}

}  // namespace fourierkv
