// A map that forgets what was used longest ago.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace fourierkv {

// Time passes in rounds. What was found or added in the present round is never forgotten, however
// large it is: pointers to values stay valid until the next round begins at least. Not thread safe.
template <typename Key, typename Value>
class LruMap {
 public:
  void BeginRound() { ++round_; }

  // Null if there is none. Marks the value as used in this round.
  Value* Find(const Key& key) {
    const auto at = entries_.find(key);
    if (at == entries_.end()) return nullptr;
    at->second.last_use = round_;
    return &at->second.value;
  }

  // Replaces the value of `key`, if there is one.
  Value* Add(const Key& key, Value value, int64_t bytes) {
    Remove(key);
    bytes_ += bytes;
    const auto [at, added] = entries_.emplace(key, Entry{std::move(value), bytes, round_});
    return &at->second.value;
  }

  // The value of `key`, which must be there, takes `bytes` more.
  void Grow(const Key& key, int64_t bytes) {
    entries_.at(key).bytes += bytes;
    bytes_ += bytes;
  }

  void Remove(const Key& key) {
    const auto at = entries_.find(key);
    if (at == entries_.end()) return;
    bytes_ -= at->second.bytes;
    entries_.erase(at);
  }

  // Forgets, oldest use first, until at most `most` bytes are left or all that is left was used in
  // this round.
  void Trim(int64_t most) {
    if (bytes_ <= most) return;
    using Iterator = typename std::map<Key, Entry>::iterator;
    std::vector<Iterator> candidates;
    for (auto at = entries_.begin(); at != entries_.end(); ++at) {
      if (at->second.last_use != round_) candidates.push_back(at);
    }
    std::sort(candidates.begin(), candidates.end(), [](const Iterator& a, const Iterator& b) {
      return a->second.last_use < b->second.last_use;
    });
    for (auto at = candidates.begin(); at != candidates.end() && bytes_ > most; ++at) {
      bytes_ -= (*at)->second.bytes;
      entries_.erase(*at);
    }
  }

  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    Value value;
    int64_t bytes;
    uint64_t last_use;
  };

  std::map<Key, Entry> entries_;
  int64_t bytes_ = 0;
  uint64_t round_ = 1;
};

}  // namespace fourierkv
