// What a hostile or broken Redis server may answer: replies, in pieces, which may be maps of slots
// and manifests. Input: one byte, how large the pieces are, then the reply.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "absl/strings/string_view.h"
#include "compute/base/content_hash.h"
#include "kv_service/redis/hash_slot.h"
#include "kv_service/redis/reply_parser.h"
#include "kv_service/redis/slot_map.h"
#include "kv_service/tiers/redis_manifest.h"

namespace {

using namespace fourierkv;

constexpr int64_t kMostBytes = 1 << 16;

int64_t Objects(const RedisReply& reply) {
  int64_t sum = 1;
  for (const RedisReply& element : reply.elements) sum += Objects(element);
  return sum;
}

void ReadManifestAsItIs(absl::string_view bytes) {
  const auto manifest = DecodeRedisManifest(bytes);
  if (manifest.ok() && EncodeRedisManifest(*manifest) != bytes) std::abort();
}

// Also with the checksum made right: whoever writes nonsense can compute that, too.
void ReadManifest(absl::string_view bytes) {
  ReadManifestAsItIs(bytes);
  std::string sealed(bytes.substr(0, bytes.size() - std::min<size_t>(bytes.size(), 8)));
  const uint64_t checksum = Checksum(std::as_bytes(std::span(sealed)));
  for (int i = 0; i < 8; ++i) sealed += static_cast<char>(checksum >> (8 * i));
  ReadManifestAsItIs(sealed);
}

void ReadSlots(const RedisReply& reply) {
  const auto slots = SlotMap::FromReply(reply, {"asked", 1});
  if (!slots.ok()) return;
  if (slots->nodes().size() > kMaxClusterNodes) std::abort();
  for (int slot = 0; slot < kHashSlots; slot += 1000) {
    const NodeAddress* const owner = slots->Owner(slot);
    if (owner != nullptr && !slots->Names(*owner)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const size_t piece = size_t{1} + data[0];
  absl::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  ReadManifest(bytes);
  ReplyParser parser(kMostBytes);
  while (!bytes.empty()) {
    const absl::string_view part = bytes.substr(0, piece);
    bytes.remove_prefix(part.size());
    if (!parser.Feed(part).ok()) return 0;
    for (;;) {
      const auto reply = parser.Next();
      if (!reply.ok()) return 0;
      if (!reply->has_value()) break;
      if (Objects(**reply) > kMaxReplyObjects) std::abort();
      if ((*reply)->IsString()) ReadManifest((*reply)->text);
      ReadSlots(**reply);
    }
  }
  return 0;
}
