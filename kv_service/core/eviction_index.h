// The order in which a segment store gives memory back.

#pragma once

#include <cstdint>
#include <tuple>

#include "absl/container/btree_set.h"

namespace fourierkv {

// Base of a store's entries: what the index needs to know of one. Change through EvictionIndex
// only.
struct EvictionNode {
  uint64_t serial = 0;           // unique, breaks ties
  uint64_t last_use = 0;         // logical time
  uint64_t ranked_last_use = 0;  // what the queues order by; never newer than the fields above
  uint32_t rank = 0;             // of the latest use: the larger, the longer to be kept
  uint32_t ranked = 0;
  uint8_t uses = 0;
  bool exact_droppable = false;
  bool removable = false;
};

// Two queues: entries whose exact form can be dropped because the compact one stays, least recently
// used first; and entries that can be removed whole, in order of frequency with aging (LFU-DA):
// a use ranks an entry at the store's age plus the number of its uses, the lowest rank goes first,
// of equal ones the least recently used, and its rank is the store's new age. So every use is worth
// about one turnover of the memory, and what was popular once is forgotten. docs/reliability.md has
// the measurements.
//
// A use is O(1): queues learn of it only when the entry's turn comes. Everything else is O(log n).
// Holds no ownership; an entry must be in neither queue before it dies. Not thread safe.
class EvictionIndex {
 public:
  static constexpr uint8_t kMaxUses = 63;

  // A use at logical time `now`, which never decreases; `counts` if it is no part of an earlier
  // one.
  void Use(EvictionNode& node, uint64_t now, bool counts);

  // Moves `node` to where its new state belongs.
  void Update(EvictionNode& node, bool exact_droppable, bool removable);

  // The next of each queue; null if empty.
  EvictionNode* NextExact();
  EvictionNode* NextRemovable();

  // Says that `node` was evicted, rather than removed for another reason.
  void Age(const EvictionNode& node);

 private:
  struct LeastRecent {
    bool operator()(const EvictionNode* a, const EvictionNode* b) const {
      return std::tie(a->ranked_last_use, a->serial) < std::tie(b->ranked_last_use, b->serial);
    }
  };
  struct LeastRank {
    bool operator()(const EvictionNode* a, const EvictionNode* b) const {
      return std::tie(a->ranked, a->ranked_last_use, a->serial) <
             std::tie(b->ranked, b->ranked_last_use, b->serial);
    }
  };
  // Moves the node to the places of its latest use, if it is not there; true if it was.
  bool IsCurrent(EvictionNode& node);
  void Leave(EvictionNode& node);
  void Join(EvictionNode& node);

  absl::btree_set<EvictionNode*, LeastRecent> exact_;
  absl::btree_set<EvictionNode*, LeastRank> removable_;
  uint32_t age_ = 0;
};

}  // namespace fourierkv
