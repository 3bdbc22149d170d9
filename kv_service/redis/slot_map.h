// Who owns the slots of a Redis Cluster.

#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kv_service/redis/node_address.h"
#include "kv_service/redis/redis_reply.h"

namespace fourierkv {

inline constexpr size_t kMaxClusterNodes = 4096;

// What one node said at one time. Copyable; thread safe while nobody changes it.
class SlotMap {
 public:
  SlotMap() = default;  // nobody owns anything

  // Of the reply to CLUSTER SLOTS by the node at `asked`, whose host stands where the reply has
  // none. Internal if the reply is malformed or names more than kMaxClusterNodes nodes.
  static absl::StatusOr<SlotMap> FromReply(const RedisReply& reply, const NodeAddress& asked);

  // Everything is at `node`.
  static SlotMap Single(const NodeAddress& node);

  // Null if no known node has the slot. 0 <= slot < kHashSlots.
  const NodeAddress* Owner(int slot) const;

  // For MOVED: this slot's owner from now on.
  void SetOwner(int slot, const NodeAddress& node);

  bool Names(const NodeAddress& node) const;

  // Masters and replicas.
  const std::vector<NodeAddress>& nodes() const { return nodes_; }

 private:
  static constexpr uint16_t kNobody = 0xffff;

  // Its index in nodes_, where it is added if need be; kNobody if there are too many.
  uint16_t IndexOf(const NodeAddress& node);

  std::vector<NodeAddress> nodes_;
  std::vector<uint16_t> owners_;  // of each slot, an index into nodes_; empty: nobody's
};

}  // namespace fourierkv
