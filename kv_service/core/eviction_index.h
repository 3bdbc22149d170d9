// The order in which a segment store gives memory back.

#pragma once

#include <cstdint>
#include <set>

namespace fourierkv {

// Base of a store's entries: what the index needs to know of one.
struct EvictionNode {
  uint64_t last_use = 0;  // logical time; change through EvictionIndex::Update only
  uint64_t serial = 0;    // unique, breaks ties
  bool exact_droppable = false;
  bool removable = false;
};

// Two queues, each least recently used first: entries whose exact form can be dropped because the
// compact one stays, and entries that can be removed whole. Every operation is O(log n). Holds no
// ownership; an entry must be updated to neither before it dies. Not thread safe.
class EvictionIndex {
 public:
  // Moves `node` to where its new state belongs.
  void Update(EvictionNode& node, uint64_t last_use, bool exact_droppable, bool removable);

  // The next of each queue; null if empty.
  EvictionNode* NextExact() const { return exact_.empty() ? nullptr : *exact_.begin(); }
  EvictionNode* NextRemovable() const { return removable_.empty() ? nullptr : *removable_.begin(); }

 private:
  struct LeastRecent {
    bool operator()(const EvictionNode* a, const EvictionNode* b) const {
      return a->last_use != b->last_use ? a->last_use < b->last_use : a->serial < b->serial;
    }
  };
  std::set<EvictionNode*, LeastRecent> exact_;
  std::set<EvictionNode*, LeastRecent> removable_;
};

}  // namespace fourierkv
