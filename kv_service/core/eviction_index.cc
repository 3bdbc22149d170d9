#include "kv_service/core/eviction_index.h"

#include <algorithm>

namespace fourierkv {

void EvictionIndex::Use(EvictionNode& node, uint64_t now, bool counts) {
  if (counts && node.uses < kMaxUses) ++node.uses;
  node.last_use = now;
  // Never less than before: age only grows.
  node.rank = age_ + node.uses;
}

void EvictionIndex::Update(EvictionNode& node, bool exact_droppable, bool removable) {
  if (node.exact_droppable == exact_droppable && node.removable == removable) return;
  Leave(node);
  node.exact_droppable = exact_droppable;
  node.removable = removable;
  Join(node);
}

// Ranks and times of use never decrease. So once the first of a queue stands where its latest use
// belongs, every other one belongs behind it, wherever it stands.
EvictionNode* EvictionIndex::NextExact() {
  while (!exact_.empty()) {
    EvictionNode* const first = *exact_.begin();
    if (IsCurrent(*first)) return first;
  }
  return nullptr;
}

EvictionNode* EvictionIndex::NextRemovable() {
  while (!removable_.empty()) {
    EvictionNode* const first = *removable_.begin();
    if (IsCurrent(*first)) return first;
  }
  return nullptr;
}

void EvictionIndex::Age(const EvictionNode& node) { age_ = std::max(age_, node.rank); }

bool EvictionIndex::IsCurrent(EvictionNode& node) {
  if (node.ranked_last_use == node.last_use && node.ranked == node.rank) return true;
  Leave(node);
  Join(node);
  return false;
}

void EvictionIndex::Leave(EvictionNode& node) {
  if (node.exact_droppable) exact_.erase(&node);
  if (node.removable) removable_.erase(&node);
}

void EvictionIndex::Join(EvictionNode& node) {
  node.ranked_last_use = node.last_use;
  node.ranked = node.rank;
  if (node.exact_droppable) exact_.insert(&node);
  if (node.removable) removable_.insert(&node);
}

}  // namespace fourierkv
