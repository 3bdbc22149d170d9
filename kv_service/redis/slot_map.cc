#include "kv_service/redis/slot_map.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kv_service/redis/hash_slot.h"

namespace fourierkv {
namespace {

// "?" and nil stand for a host that the cluster does not know or want to tell.
std::optional<NodeAddress> ReadNode(const RedisReply& entry, const NodeAddress& asked) {
  if (!entry.IsArray() || entry.elements.size() < 2 || !entry.elements[1].IsInteger()) {
    return std::nullopt;
  }
  const RedisReply& host = entry.elements[0];
  const int64_t port = entry.elements[1].integer;
  if (port < 1 || port > 65535 || host.text.size() > kMaxHostBytes) return std::nullopt;
  const bool named = host.IsString() && !host.text.empty() && host.text != "?";
  return NodeAddress{named ? host.text : asked.host, static_cast<int>(port)};
}

}  // namespace

absl::StatusOr<SlotMap> SlotMap::FromReply(const RedisReply& reply, const NodeAddress& asked) {
  const auto malformed = [&](absl::string_view what) {
    return absl::InternalError(
        absl::StrCat("CLUSTER SLOTS of Redis node ", asked.ToString(), ": ", what));
  };
  if (!reply.IsArray()) return malformed("no array");
  SlotMap map;
  map.owners_.assign(kHashSlots, kNobody);
  for (const RedisReply& range : reply.elements) {
    if (!range.IsArray() || range.elements.size() < 3 || !range.elements[0].IsInteger() ||
        !range.elements[1].IsInteger()) {
      return malformed("a range is not (first, last, master, ...)");
    }
    const int64_t first = range.elements[0].integer;
    const int64_t last = range.elements[1].integer;
    if (first < 0 || last < first || last >= kHashSlots) return malformed("a range of no slots");
    for (size_t i = 2; i < range.elements.size(); ++i) {
      const std::optional<NodeAddress> node = ReadNode(range.elements[i], asked);
      if (!node.has_value()) return malformed("a node is not (host, port, ...)");
      const uint16_t index = map.IndexOf(*node);
      if (index == kNobody) return malformed("too many nodes");
      if (i == 2) std::fill(&map.owners_[first], &map.owners_[last] + 1, index);
    }
  }
  return map;
}

SlotMap SlotMap::Single(const NodeAddress& node) {
  SlotMap map;
  map.nodes_ = {node};
  map.owners_.assign(kHashSlots, 0);
  return map;
}

const NodeAddress* SlotMap::Owner(int slot) const {
  if (owners_.empty()) return nullptr;
  const uint16_t index = owners_[static_cast<size_t>(slot)];
  return index == kNobody ? nullptr : &nodes_[index];
}

void SlotMap::SetOwner(int slot, const NodeAddress& node) {
  if (owners_.empty()) owners_.assign(kHashSlots, kNobody);
  if (const uint16_t index = IndexOf(node); index != kNobody) {
    owners_[static_cast<size_t>(slot)] = index;
  }
}

bool SlotMap::Names(const NodeAddress& node) const {
  return std::find(nodes_.begin(), nodes_.end(), node) != nodes_.end();
}

uint16_t SlotMap::IndexOf(const NodeAddress& node) {
  const auto found = std::find(nodes_.begin(), nodes_.end(), node);
  if (found != nodes_.end()) return static_cast<uint16_t>(found - nodes_.begin());
  if (nodes_.size() >= kMaxClusterNodes) return kNobody;
  nodes_.push_back(node);
  return static_cast<uint16_t>(nodes_.size() - 1);
}

}  // namespace fourierkv
