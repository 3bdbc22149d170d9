// The files of a disk tier: what is written, in which batches, and when it is safe. RocksDB,
// hidden.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/stored_segment.h"
#include "kv_service/tiers/value_cipher.h"

namespace rocksdb {
class Env;
}

namespace fourierkv {

// Two column families: descriptions, marks and codec profiles in the default one, and the chunks of
// records in "payload", whose values RocksDB keeps in blob files, apart from its sorted ones. So
// descriptions are read without touching payload. Thread safe.
//
// Statuses: ResourceExhausted when the disk is full, DataLoss for damage that RocksDB found,
// DeadlineExceeded, NotFound, else Unavailable.
class DiskDatabase {
 public:
  // Opens the database in `path`, made if it is absent or an empty directory. FailedPrecondition if
  // the directory holds something else or another process has it open; PermissionDenied if it
  // cannot be written; DataLoss if it is damaged beyond what can be skipped. `env` null: the
  // system's.
  // Without `cipher`, nothing is encrypted; with it, descriptions and chunks are, while keys, marks
  // and codec profiles are not. FailedPrecondition also if the directory is of the other kind.
  static absl::StatusOr<std::unique_ptr<DiskDatabase>> Open(
      const std::string& path, rocksdb::Env* env,
      std::shared_ptr<const ValueCipher> cipher = nullptr);
  ~DiskDatabase();
  DiskDatabase(const DiskDatabase&) = delete;
  DiskDatabase& operator=(const DiskDatabase&) = delete;

  using Pieces = std::vector<std::span<const std::byte>>;

  // Writes that happen together or not at all.
  class Batch {
   public:
    explicit Batch(const DiskDatabase& database);
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    void PutProfile(const Digest& id, absl::string_view json);
    // `sequence` orders descriptions by age when they are read back.
    void PutDescription(const BlockKey& key, uint64_t sequence, absl::string_view description);
    void DeleteDescription(const BlockKey& key);
    void PutChunk(const BlockKey& key, SegmentForm form, uint32_t number, const Pieces& pieces);
    void DeleteChunks(const BlockKey& key, SegmentForm form, int64_t count);
    // Of all forms, when nobody knows how many there are.
    void DeleteAllChunks(const BlockKey& key);
    // Says that chunks of a form are being written in several batches. What is marked when the
    // database is opened again was never finished.
    void Mark(const BlockKey& key, SegmentForm form, int64_t count);
    void Unmark(const BlockKey& key, SegmentForm form);

   private:
    friend class DiskDatabase;
    struct Rep;
    std::unique_ptr<Rep> rep_;
  };

  // Visible at once, durable with the next Sync.
  absl::Status Write(Batch& batch);
  // Everything written before the call is durable.
  absl::Status Sync();

  // Calls `add` with the chunk's bytes, and returns what that does.
  absl::Status ReadChunk(const BlockKey& key, SegmentForm form, uint32_t number,
                         absl::Time deadline,
                         const std::function<absl::Status(std::span<const std::byte>)>& add);

  absl::Status ForEachProfile(const std::function<void(absl::string_view json)>& visit);
  // A description that is damaged, or sealed with a key that is not given any more, is empty.
  // FailedPrecondition if all are: the keys are wrong.
  absl::Status ForEachDescription(
      const std::function<void(const BlockKey&, uint64_t sequence, absl::string_view)>& visit);
  // Deletes the chunks of everything that is marked, and the marks.
  absl::Status DropUnfinished();

  // Bytes of the payload's files, and how many of them nothing refers to any more.
  int64_t PayloadFileBytes() const;
  int64_t PayloadGarbageBytes() const;
  // Rewrites the older payload files without their garbage. Slow.
  absl::Status CollectGarbage();

  // After an error: makes everything that is visible durable anew, and accepts writes again.
  absl::Status Recover();

 private:
  struct Rep;
  explicit DiskDatabase(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace fourierkv
