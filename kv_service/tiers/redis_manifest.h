// What the Redis tier writes for one form of one segment: chunks of its record, and a manifest that
// makes them visible. Byte by byte in docs/format.md.

#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// One form of one segment, whether or not it is stored.
struct RedisRecordName {
  BlockKey key;
  SegmentForm form = SegmentForm::kExact;
};

// Where a record's bytes are.
struct RedisRecordPlace {
  // Random: chunks of two writers of the same form never mix.
  uint64_t generation = 0;
  int64_t chunk_bytes = 0;  // of each chunk but the last
  int64_t record_bytes = 0;
  absl::Time expires = absl::InfiniteFuture();  // whatever uses it

  bool operator==(const RedisRecordPlace&) const = default;
  int64_t chunks() const { return (record_bytes + chunk_bytes - 1) / chunk_bytes; }
  // 0 <= i < chunks().
  int64_t BytesOf(int64_t i) const {
    return i + 1 < chunks() ? chunk_bytes : record_bytes - i * chunk_bytes;
  }
};

inline constexpr int64_t kMaxRedisChunkBytes = int64_t{8} << 20;
inline constexpr int64_t kMaxRedisChunks = 65536;

struct RedisManifest {
  RedisRecordPlace place;
  std::string description;  // as EncodeDescription (segment_record.h), of this form only
};

// With a checksum. DecodeRedisManifest takes exactly what EncodeRedisManifest gives, for places
// within the limits; else DataLoss. It does not look into the description.
std::string EncodeRedisManifest(const RedisManifest& manifest);
absl::StatusOr<RedisManifest> DecodeRedisManifest(absl::string_view bytes);

// Names of keys. Those of one segment are in one hash slot.
class RedisKeys {
 public:
  // `prefix` has no braces.
  explicit RedisKeys(std::string prefix) : prefix_(std::move(prefix)) {}

  std::string Manifest(const RedisRecordName& name) const;
  std::string Chunk(const RedisRecordName& name, uint64_t generation, int64_t i) const;
  // A hash: codec profiles as JSON, by their ids in hexadecimal digits.
  std::string Profiles() const;

 private:
  const std::string prefix_;
};

}  // namespace fourierkv
