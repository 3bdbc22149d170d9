#include "kv_service/core/eviction_index.h"

namespace fourierkv {

void EvictionIndex::Update(EvictionNode& node, uint64_t last_use, bool exact_droppable,
                           bool removable) {
  // The sets are ordered by last_use: a node leaves them before it changes.
  if (node.exact_droppable) exact_.erase(&node);
  if (node.removable) removable_.erase(&node);
  node.last_use = last_use;
  node.exact_droppable = exact_droppable;
  node.removable = removable;
  if (exact_droppable) exact_.insert(&node);
  if (removable) removable_.insert(&node);
}

}  // namespace fourierkv
