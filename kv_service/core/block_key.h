// Chained content hashes that name segments. Byte encoding and test vectors: docs/keys.md.

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "compute/base/content_hash.h"
#include "kv_service/core/cache_namespace.h"

namespace fourierkv {

// Names one segment together with everything before it: namespace and all earlier token ids.
using BlockKey = Digest;

// Key of the full segment that holds `tokens` (all S of them) and follows `parent`. The parent of
// segment 0 is the namespace's root key.
BlockKey NextKey(const BlockKey& parent, std::span<const uint32_t> tokens);

// Key of the unfinished tail that holds `tokens` (1 to S - 1) and follows `parent`. Never equal to
// a full segment's key.
BlockKey TailKey(const BlockKey& parent, std::span<const uint32_t> tokens);

// Key of a whole sequence with room for `capacity` tokens, in the namespace of that root key. Never
// equal to a segment's or a tail's.
BlockKey SequenceKey(const BlockKey& root, int64_t capacity, std::span<const uint32_t> tokens);

struct KeyChain {
  std::vector<BlockKey> segments;  // full segments, in order
  std::optional<BlockKey> tail;    // set iff the token count is no multiple of S
};

// Keys of a sequence whose first token is at a segment's start and follows `parent`.
// Requires segment_tokens >= 1.
KeyChain ChainKeys(const BlockKey& parent, int segment_tokens, std::span<const uint32_t> tokens);

// The same from position 0 of a valid namespace.
KeyChain ChainKeys(const CacheNamespace& ns, std::span<const uint32_t> tokens);

}  // namespace fourierkv
