#include "kv_service/core/block_key.h"

#include "absl/strings/string_view.h"

namespace fourierkv {
namespace {

// A whole sequence's key covers its capacity, too.
BlockKey HashTokens(absl::string_view domain, const BlockKey& parent,
                    std::span<const uint32_t> tokens,
                    std::optional<int64_t> capacity = std::nullopt) {
  // Little-endian on every machine; a copy keeps one call of the hash for a whole segment.
  std::vector<uint8_t> bytes;
  bytes.reserve(tokens.size() * 4);
  for (const uint32_t token : tokens) {
    for (int shift = 0; shift < 32; shift += 8)
      bytes.push_back(static_cast<uint8_t>(token >> shift));
  }
  Sha256 hash;
  hash.AddString(domain).AddBytes(parent.bytes.data(), parent.bytes.size());
  if (capacity.has_value()) hash.AddU64(static_cast<uint64_t>(*capacity));
  hash.AddU64(tokens.size()).AddBytes(bytes.data(), bytes.size());
  return hash.Finish();
}

}  // namespace

BlockKey NextKey(const BlockKey& parent, std::span<const uint32_t> tokens) {
  return HashTokens("fourierkv-segment-v1", parent, tokens);
}

BlockKey TailKey(const BlockKey& parent, std::span<const uint32_t> tokens) {
  return HashTokens("fourierkv-tail-v1", parent, tokens);
}

BlockKey SequenceKey(const BlockKey& root, int64_t capacity, std::span<const uint32_t> tokens) {
  return HashTokens("fourierkv-sequence-v1", root, tokens, capacity);
}

KeyChain ChainKeys(const BlockKey& parent, int segment_tokens, std::span<const uint32_t> tokens) {
  const size_t size = static_cast<size_t>(segment_tokens);
  KeyChain chain;
  chain.segments.reserve(tokens.size() / size);
  BlockKey last = parent;
  for (; tokens.size() >= size; tokens = tokens.subspan(size)) {
    last = NextKey(last, tokens.first(size));
    chain.segments.push_back(last);
  }
  if (!tokens.empty()) chain.tail = TailKey(last, tokens);
  return chain;
}

KeyChain ChainKeys(const CacheNamespace& ns, std::span<const uint32_t> tokens) {
  return ChainKeys(ns.RootKey(), ns.segment_tokens, tokens);
}

}  // namespace fourierkv
