// What a disk tier holds, in memory: who follows whom, how large it is, and what goes first.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/node_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kv_service/core/segment_tier.h"

namespace fourierkv {

// A tree like the memory tier's: the parent of every segment is here too, or is its namespace's
// root; it lives, and is protected, as long as its children. Segments without children are evicted
// least recently used first. A segment whose last form was dropped as damaged stays as a hole while
// it has children. Not thread safe.
class DiskIndex {
 public:
  struct Entry;

  // The entry, or null. Stays valid until erased.
  const Entry* Find(const BlockKey& key) const;
  // Requires an entry. Holes are described, without forms.
  TierSegment Describe(const Entry& entry) const;
  // Whether its time is over, and nothing protects it: it is to be missing.
  static bool IsExpired(const Entry& entry, absl::Time now);

  // Whether `segment`'s parent is here or a root.
  bool HasParent(const StoredSegment& segment) const;

  // Adds the segment or replaces what is known of it, most recently used. Requires HasParent.
  void Put(const TierSegment& segment);

  // Requires an entry without children.
  void Erase(const BlockKey& key);

  // The keys of `key` and of all that continues it, children before parents; empty if not here.
  std::vector<BlockKey> Subtree(const BlockKey& key) const;

  // Most recently used now, and protected until `until` at least.
  void Touch(const BlockKey& key, absl::Time until);

  // The next to evict, of `tenant` if one is given; nullopt if all that is left is protected at
  // `now`, is `spared` or one of its ancestors.
  std::optional<BlockKey> NextVictim(absl::Time now, const BlockKey& spared,
                                     std::optional<absl::string_view> tenant = std::nullopt) const;

  // Segments without children that have expired, `most` at most.
  std::vector<BlockKey> Expired(absl::Time now, size_t most) const;

  // For walks that pause: entries by number; null where there is none.
  size_t slots() const { return slots_.size(); }
  const Entry* At(size_t slot) const { return slots_[slot]; }

  int64_t segments() const { return static_cast<int64_t>(entries_.size()); }
  int64_t bytes() const { return bytes_; }              // of all records and descriptions
  int64_t TenantBytes(absl::string_view tenant) const;  // of these, in the namespaces of a tenant

  // Bytes that the forms of a segment take: records, and the description.
  static int64_t BytesOf(const TierSegment& segment);

 private:
  using Map = absl::node_hash_map<BlockKey, Entry>;
  using Leaves = std::set<std::pair<uint64_t, const Entry*>>;  // by last use, which is unique
  struct Share {
    int64_t segments = 0;
    int64_t bytes = 0;
    Leaves leaves;
  };
  void Use(Entry& entry);
  void Link(Entry& entry, Entry& parent);
  void Unlink(Entry& entry);
  // Makes an entry without children known as one, or forgets that it was.
  void Join(const Entry& entry);
  void Leave(const Entry& entry);
  void SetBytes(Entry& entry, int64_t bytes);
  void Extend(Entry& entry, int64_t expires_at);

  Map entries_;
  Leaves leaves_;
  std::set<std::pair<int64_t, const Entry*>> mortal_leaves_;  // by expiry
  std::map<std::string, Share> shares_;                       // of tenants with segments
  std::vector<const Entry*> slots_;
  std::vector<size_t> free_slots_;
  int64_t bytes_ = 0;
  uint64_t uses_ = 0;
};

struct DiskIndex::Entry {
  struct Form {
    int64_t bytes = 0;
    float mean_relative_error = 0;
    float max_relative_error = 0;
  };
  const BlockKey* key = nullptr;  // of the map
  std::shared_ptr<const NamespaceContext> context;
  Form forms[std::size(kHeldForms)];
  int32_t index = 0;
  int32_t tokens = 0;
  int32_t capacity = 0;
  int32_t children = 0;
  float error_bound = 0;
  bool tail = false;
  int64_t total_bytes = 0;
  uint64_t last_use = 0;
  int64_t protected_until = 0;  // seconds since the epoch
  int64_t expires_at = 0;       // as ToExpiry
  size_t slot = 0;
  Share* share = nullptr;  // of its tenant
  Entry* parent = nullptr;
  Entry* first_child = nullptr;
  Entry* previous_sibling = nullptr;
  Entry* next_sibling = nullptr;
};

}  // namespace fourierkv
