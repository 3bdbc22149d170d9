// Keeps what is being deleted from coming back.

#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "kv_service/core/block_key.h"

namespace fourierkv {

// Who reads from slower tiers may have found a segment there before it was deleted, and be about to
// bring it into memory after. So readers enter before they look, and bring what they found through
// the gate, which refuses what was being deleted at any time since. Thread safe; must outlive its
// readers and deletions. Remembers deletions for as long as there are readers who entered before
// their end.
class DeletionGate {
 public:
  // Someone who looks into tiers, for as long as this lives.
  class Reader {
   public:
    Reader(Reader&& other) noexcept
        : gate_(std::exchange(other.gate_, nullptr)), entered_(other.entered_) {}
    Reader& operator=(Reader&&) = delete;
    ~Reader();

   private:
    friend class DeletionGate;
    Reader(DeletionGate* gate, uint64_t entered) : gate_(gate), entered_(entered) {}
    DeletionGate* gate_;
    const uint64_t entered_;
  };
  Reader Enter();

  // Runs `bring`, unless one of `keys` was being deleted since the reader entered: then returns
  // false. No deletion begins meanwhile, so `bring` must be quick.
  bool Bring(const Reader& reader, std::span<const BlockKey> keys,
             const std::function<void()>& bring);

  // The deletion of `keys`, from now until the last copy of what is returned is gone. Waits for
  // what is being brought.
  std::shared_ptr<const void> Begin(std::span<const BlockKey> keys);

 private:
  struct Deletion;
  struct Mark {
    int running = 0;     // deletions
    uint64_t ended = 0;  // the time of the last one's end; 0: none did
  };
  void End(const Deletion& deletion);
  void ForgetLocked();

  std::mutex mutex_;   // guards what follows
  uint64_t time_ = 0;  // of entries and ends
  absl::btree_multiset<uint64_t> readers_;
  absl::flat_hash_map<BlockKey, Mark> marks_;
  std::deque<std::pair<uint64_t, BlockKey>> ended_;  // in the order of time
};

}  // namespace fourierkv
