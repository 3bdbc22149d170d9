// Records of segments in Redis: written so that half of one is never seen, and read in pieces.

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/redis/redis_client.h"
#include "kv_service/tiers/redis_manifest.h"

namespace fourierkv {

struct RedisRecordOptions {
  std::string key_prefix;
  absl::Duration ttl;       // of what is not used
  int64_t chunk_bytes = 0;  // at most kMaxRedisChunkBytes
  int wait_replicas = 0;    // how many must have a record before it counts as written
  absl::Duration wait_timeout;
};

// A record is written as chunks, then its manifest; all with a time to live, chunks a little
// longer, and a short one until the manifest is there: a writer that dies leaves nothing behind.
// The first writer of a manifest wins, and the others' chunks are deleted. Thread safe; holds no
// state of records. Statuses are those of RedisClient::Run, and what is told here.
class RedisRecords {
 public:
  // `client` must outlive it.
  RedisRecords(RedisClient* client, RedisRecordOptions options);

  struct Stored {
    std::string raw;                        // the manifest as Redis has it
    std::optional<RedisManifest> manifest;  // nullopt: damaged
  };
  // One result per name; NotFound where there is no manifest.
  std::vector<absl::StatusOr<Stored>> ReadManifests(std::span<const RedisRecordName> names,
                                                    absl::Time deadline);

  struct Reading {
    RedisRecordName name;
    RedisRecordPlace place;
    // Called with the record's bytes, chunk by chunk; an error ends this record.
    std::function<absl::Status(std::span<const std::byte>)> add;
    absl::Status status;  // NotFound: a chunk is gone; DataLoss: it has another size
  };
  // Reads the records of all whose status is OK, about kWindowBytes at a time, and makes them live
  // longer. Whatever is asked of Redis is waited for until the deadline.
  void Read(std::span<Reading> readings, const Patience& patience);

  struct Writing {
    RedisRecordName name;
    const RecordWriter* record = nullptr;
    std::string description;
    absl::Time expires = absl::InfiniteFuture();
  };
  // OK: every record is readable by everyone, as this writer or as another one wrote it.
  // ResourceExhausted if Redis has no room; Unavailable also if too few replicas acknowledged in
  // time.
  absl::Status Write(std::span<const Writing> writings, const Patience& patience);

  // Makes a record live as long as if it was new, and for `at_least`, but not beyond its expiry;
  // never shorter than it would. False if part of it is gone.
  absl::StatusOr<bool> Refresh(const RedisRecordName& name, const RedisRecordPlace& place,
                               absl::Time deadline, absl::Duration at_least = absl::ZeroDuration());

  // Replaces description and expiry of the record that `stored` is of, unless it changed meanwhile.
  absl::Status Redescribe(const RedisRecordName& name, const Stored& stored,
                          const std::string& description, absl::Time expires, absl::Time deadline);

  // Deletes exactly this manifest, if it is still there, and then its chunks.
  absl::Status Drop(const RedisRecordName& name, const Stored& stored, absl::Time deadline);

  // Deletes the manifests of all names, whatever they are, and the chunks of those given: `stored`
  // is what ReadManifests gave for `names`.
  absl::Status Delete(std::span<const RedisRecordName> names,
                      std::span<const absl::StatusOr<Stored>> stored, absl::Time deadline);

  static constexpr int64_t kWindowBytes = int64_t{8} << 20;

 private:
  struct Publication;

  absl::Status WriteChunks(std::span<const Publication> publications, const Patience& patience);
  absl::Status Settle(const Publication& publication, absl::Time deadline);
  void AddLengthen(const RedisRecordName& name, const RedisRecordPlace& place,
                   absl::Duration at_least, std::vector<RedisCommand>& commands) const;
  void AddUnlinks(const RedisRecordName& name, const RedisRecordPlace& place,
                  std::vector<RedisCommand>& commands) const;
  absl::Status RunAll(std::span<const RedisCommand> commands, absl::Time deadline);
  // How long a record lives from now on, in milliseconds; its chunks live kChunkSlack longer.
  std::string Ttl(const RedisRecordPlace& place, absl::Duration at_least = {}) const;
  std::string ChunkTtl(const RedisRecordPlace& place, absl::Duration at_least = {}) const;
  absl::Duration LifeOf(const RedisRecordPlace& place, absl::Duration at_least) const;

  RedisClient* const client_;
  const RedisRecordOptions options_;
  const RedisKeys keys_;
};

}  // namespace fourierkv
