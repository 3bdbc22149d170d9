// Makes what is used live longer in Redis, without making anybody wait.

#pragma once

#include <condition_variable>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/tiers/redis_records.h"

namespace fourierkv {

// Refreshes a key when a quarter of the time that it has is over, or when it is to live longer than
// that, and forgets wishes when there are too many: they are only wishes. Thread safe.
class RedisRefresher {
 public:
  // `records` must outlive it. `ttl` is how long they let live what is used.
  RedisRefresher(RedisRecords* records, absl::Duration ttl);
  ~RedisRefresher();
  RedisRefresher(const RedisRefresher&) = delete;
  RedisRefresher& operator=(const RedisRefresher&) = delete;

  // `until`: how long they should live at least, beside their usual time. Does not block.
  void Add(std::span<const BlockKey> keys, absl::Time until);

 private:
  struct Wish {
    BlockKey key;
    absl::Time until;
  };

  void Run();
  void Refresh(std::span<const Wish> wishes);

  RedisRecords* const records_;
  const absl::Duration ttl_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Wish> wishes_;
  absl::flat_hash_map<BlockKey, absl::Time> lives_;  // until when, as far as it was asked for here
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace fourierkv
