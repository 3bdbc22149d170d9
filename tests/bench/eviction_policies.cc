#include "eviction_policies.h"

#include <algorithm>
#include <deque>
#include <set>
#include <tuple>
#include <unordered_set>

namespace fourierkv {
namespace {

// Victims in order of (region, priority, secondary, id).
class Ordered : public CachePolicy {
 public:
  void Queue(CacheNode& node) override { order_.insert(&node); }
  void Unqueue(CacheNode& node) override { order_.erase(&node); }
  CacheNode* Victim() override { return order_.empty() ? nullptr : *order_.begin(); }
  void Erase(CacheNode& /*node*/) override {}
  void BeginRequest() override { ++tick_; }

 protected:
  // Changes what a node is ordered by.
  template <typename Change>
  void Reorder(CacheNode& node, Change change) {
    const bool queued = node.queued;
    if (queued) order_.erase(&node);
    change();
    if (queued) order_.insert(&node);
  }
  uint64_t tick_ = 0;

 private:
  struct Less {
    bool operator()(const CacheNode* a, const CacheNode* b) const {
      return std::tie(a->region, a->priority, a->secondary, a->id) <
             std::tie(b->region, b->priority, b->secondary, b->id);
    }
  };
  std::set<CacheNode*, Less> order_;
};

class Lru : public Ordered {
 public:
  void Insert(CacheNode& node) override { node.priority = tick_; }
  void Use(CacheNode& node) override {
    Reorder(node, [&] { node.priority = tick_; });
  }
};

class LruTwo : public Ordered {
 public:
  void Insert(CacheNode& node) override { node.secondary = tick_; }
  void Use(CacheNode& node) override {
    Reorder(node, [&] {
      node.priority = node.secondary;
      node.secondary = tick_;
    });
  }
};

class LfuAging : public Ordered {
 public:
  void Insert(CacheNode& node) override {
    node.uses = 1;
    Set(node);
  }
  void Use(CacheNode& node) override {
    Reorder(node, [&] {
      ++node.uses;
      Set(node);
    });
  }
  void Erase(CacheNode& node) override { age_ = std::max(age_, node.priority); }

 private:
  void Set(CacheNode& node) {
    node.priority = age_ + node.uses;
    node.secondary = tick_;
  }
  uint64_t age_ = 0;
};

// Region 0: used once since it came or was demoted. Region 1: protected, least recent demoted.
class SegmentedLru : public Ordered {
 public:
  void Insert(CacheNode& node) override {
    ++nodes_;
    node.priority = tick_;
  }
  void Use(CacheNode& node) override {
    if (node.region == 1) protected_.erase({node.priority, &node});
    Reorder(node, [&] {
      node.region = 1;
      node.priority = tick_;
    });
    protected_.insert({tick_, &node});
    while (protected_.size() * 5 > nodes_ * 4) {
      CacheNode* const oldest = protected_.begin()->second;
      protected_.erase(protected_.begin());
      Reorder(*oldest, [&] { oldest->region = 0; });
    }
  }
  void Erase(CacheNode& node) override {
    --nodes_;
    if (node.region == 1) protected_.erase({node.priority, &node});
  }

 private:
  size_t nodes_ = 0;
  std::set<std::pair<uint64_t, CacheNode*>> protected_;
};

// Next victim first. Nodes that become removable again are the next ones: a branch goes as one.
class List {
 public:
  void PushBack(CacheNode& n) { Link(n, tail_, nullptr); }
  void PushFront(CacheNode& n) { Link(n, nullptr, head_); }
  void Remove(CacheNode& n) {
    (n.previous != nullptr ? n.previous->next : head_) = n.next;
    (n.next != nullptr ? n.next->previous : tail_) = n.previous;
    n.previous = n.next = nullptr;
  }
  CacheNode* front() const { return head_; }

 private:
  void Link(CacheNode& n, CacheNode* before, CacheNode* after) {
    n.previous = before;
    n.next = after;
    (before != nullptr ? before->next : head_) = &n;
    (after != nullptr ? after->previous : tail_) = &n;
  }
  CacheNode* head_ = nullptr;
  CacheNode* tail_ = nullptr;
};

// Nodes keep their place while they are not removable, as far as that is known: new ones join at
// the back, old ones at the hand.
class Sieve : public CachePolicy {
 public:
  void Insert(CacheNode& node) override { node.uses = 0; }
  void Use(CacheNode& node) override { node.uses = 1; }
  void Queue(CacheNode& node) override {
    if (node.region == 0) {
      node.region = 1;
      list_.PushBack(node);
    } else {
      Hold(node);
    }
  }
  void Unqueue(CacheNode& node) override {
    if (hand_ == &node) hand_ = node.next;
    list_.Remove(node);
  }
  CacheNode* Victim() override {
    if (list_.front() == nullptr) return nullptr;
    if (hand_ == nullptr) hand_ = list_.front();
    while (hand_->uses > 0) {
      hand_->uses = 0;
      hand_ = hand_->next != nullptr ? hand_->next : list_.front();
    }
    return hand_;
  }
  void Erase(CacheNode& /*node*/) override {}

 private:
  void Hold(CacheNode& node) { list_.PushFront(node); }
  List list_;
  CacheNode* hand_ = nullptr;
};

class S3Fifo : public CachePolicy {
 public:
  explicit S3Fifo(uint64_t promote_at) : promote_at_(promote_at) {}
  void Insert(CacheNode& node) override {
    const auto ghost = ghosts_.find(node.id);
    node.region = ghost != ghosts_.end() ? 1 : 0;
    if (ghost != ghosts_.end()) ghosts_.erase(ghost);
    ++size_[node.region];
  }
  void Use(CacheNode& node) override { node.uses = std::min<uint64_t>(3, node.uses + 1); }
  void Queue(CacheNode& node) override {
    if (!node.priority) {
      node.priority = 1;
      list_[node.region].PushBack(node);
    } else {
      list_[node.region].PushFront(node);
    }
  }
  void Unqueue(CacheNode& node) override { list_[node.region].Remove(node); }
  CacheNode* Victim() override {
    for (;;) {
      CacheNode* const fresh = list_[0].front();
      CacheNode* const old = list_[1].front();
      if (fresh == nullptr && old == nullptr) return nullptr;
      const bool from_small =
          fresh != nullptr && (old == nullptr || size_[0] * 10 >= size_[0] + size_[1]);
      if (from_small) {
        if (fresh->uses < promote_at_) return fresh;
        list_[0].Remove(*fresh);
        --size_[0];
        ++size_[1];
        fresh->region = 1;
        fresh->uses = 0;
        list_[1].PushBack(*fresh);
      } else {
        if (old->uses == 0) return old;
        --old->uses;
        list_[1].Remove(*old);
        list_[1].PushBack(*old);
      }
    }
  }
  void Erase(CacheNode& node) override {
    --size_[node.region];
    if (node.region == 1) return;
    if (ghosts_.insert(node.id).second) ghost_order_.push_back(node.id);
    while (ghost_order_.size() > size_[0] + size_[1]) {
      ghosts_.erase(ghost_order_.front());
      ghost_order_.pop_front();
    }
  }

 private:
  const uint64_t promote_at_;
  List list_[2];
  size_t size_[2] = {0, 0};
  std::unordered_set<uint64_t> ghosts_;
  std::deque<uint64_t> ghost_order_;
};

template <typename Policy, typename... Args>
NamedPolicy Named(std::string name, Args... args) {
  return {std::move(name), [=] { return std::make_unique<Policy>(args...); }};
}

}  // namespace

std::vector<NamedPolicy> AllPolicies() {
  return {Named<Lru>("lru"),
          Named<S3Fifo>("s3-fifo", uint64_t{2}),
          Named<S3Fifo>("s3-fifo-1", uint64_t{1}),
          Named<Sieve>("sieve"),
          Named<LruTwo>("lru-2"),
          Named<SegmentedLru>("slru"),
          Named<LfuAging>("lfu-da")};
}

}  // namespace fourierkv
