// Everything that decides whether two KV tensors of the same tokens are the same bytes.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/base/content_hash.h"
#include "compute/base/geometry.h"

namespace fourierkv {

class ProfileLayout;
class SequenceLayout;

// Two sequences share segments only if every field here is equal: RootKey() starts their key chain.
// Byte encoding and test vectors: docs/keys.md.
struct CacheNamespace {
  std::string tenant_salt;  // secret to others; any bytes; may be empty
  std::string model_id;
  std::string model_revision;
  std::string weight_dtype;
  KvDtype kv_dtype = KvDtype::kBf16;
  KvGeometry geometry;  // of this tensor-parallel shard
  std::string rope;     // canonical text of the RoPE parameters; may be empty
  int tp_rank = 0;
  int tp_size = 1;
  std::string lora_id;               // empty: none
  std::optional<Digest> profile_id;  // nullopt: segments are held exact only
  int segment_tokens = 256;          // 0 for a profile of whole sequences: each is one segment

  bool operator==(const CacheNamespace&) const = default;

  // InvalidArgument naming the field, unless: model_id, model_revision and weight_dtype are not
  // empty; no string is longer than 256 bytes or (tenant_salt apart) holds control characters; the
  // geometry is valid; 1 <= tp_size <= 1024 and 0 <= tp_rank < tp_size; segment_tokens is 128, 256,
  // 512 or 1024, or 0 with a profile_id; profile_id, if given, is not zero.
  absl::Status Validate() const;

  // Parent of the first segment's key. Requires a valid namespace.
  Digest RootKey() const;
};

// A validated namespace with its codec, shared by the segments stored under it. Immutable.
struct NamespaceContext {
  CacheNamespace ns;
  Digest root;                                  // ns.RootKey()
  std::shared_ptr<const ProfileLayout> layout;  // null iff ns.profile_id is nullopt

  // Null unless the profile spans whole sequences.
  const SequenceLayout* sequence() const;
};

// InvalidArgument if `ns` is not valid or `layout` is not the layout of its profile: absent or
// present against profile_id, another id, another geometry or another segment length.
absl::StatusOr<std::shared_ptr<const NamespaceContext>> MakeNamespaceContext(
    CacheNamespace ns, std::shared_ptr<const ProfileLayout> layout);

}  // namespace fourierkv
