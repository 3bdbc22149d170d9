// Eviction policies of a prefix tree, for comparison on traces. All are aware of the tree: only
// nodes without children that are not in use can be victims.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace fourierkv {

struct CacheNode {
  uint64_t id = 0;
  CacheNode* parent = nullptr;
  int children = 0;
  int holds = 0;
  bool queued = false;     // removable now
  uint64_t priority = 0;   // what the policy orders by, and
  uint64_t secondary = 0;  // breaks ties with
  uint64_t uses = 0;
  int region = 0;  // of the policy, if it has several
  CacheNode* previous = nullptr;
  CacheNode* next = nullptr;

  bool removable() const { return children == 0 && holds == 0; }
};

// Each call is O(log n) at most. A node is Inserted, Used any number of times, at most once a
// request, and Erased; while it may be a victim it is Queued.
class CachePolicy {
 public:
  virtual ~CachePolicy() = default;
  virtual void BeginRequest() {}
  virtual void Insert(CacheNode& node) = 0;
  virtual void Use(CacheNode& node) = 0;
  virtual void Queue(CacheNode& node) = 0;    // has become removable
  virtual void Unqueue(CacheNode& node) = 0;  // no longer is
  virtual CacheNode* Victim() = 0;            // a queued node, null if there is none
  virtual void Erase(CacheNode& node) = 0;    // an unqueued node; evicted
};

struct NamedPolicy {
  std::string name;
  std::function<std::unique_ptr<CachePolicy>()> make;
};

// lru: least recently used. lfu-da: least frequently used, with dynamic aging. slru: segmented LRU,
// of 80% protected. lru-2: oldest last but one use. sieve: one queue and a hand. s3-fifo: 10% small
// queue, main queue with up to three more chances, ghosts; promotes at the second use, s3-fifo-1 at
// the first.
std::vector<NamedPolicy> AllPolicies();

}  // namespace fourierkv
