// A disk database that is opened again after a write failed.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kv_service/tiers/disk_database.h"

namespace fourierkv {

// After a write failed it is not healthy, and takes no more until Recover has got over it, which is
// tried every few seconds. One thread at a time may call Open, Recover and Write, and it alone
// may rely on get() staying the same; the rest is thread safe.
class RecoveringDatabase {
 public:
  // Takes note of what an opened database holds; of nothing, when it is null: it was closed, and
  // what was written and not synced may be lost.
  using OnChange = std::function<absl::Status(DiskDatabase* database)>;

  // `env` null: the system's; `cipher` null: not encrypted.
  RecoveringDatabase(std::string path, rocksdb::Env* env, std::shared_ptr<const ValueCipher> cipher,
                     OnChange on_change);

  // Statuses as DiskDatabase::Open, or those of OnChange.
  absl::Status Open();

  // Null while it cannot be opened again.
  std::shared_ptr<DiskDatabase> get() const;

  bool healthy() const { return healthy_; }
  uint64_t write_errors() const { return write_errors_; }
  // How often it was opened again.
  uint64_t epoch() const { return epoch_; }

  // Makes it healthy again. Unavailable if that was tried just now.
  absl::Status Recover();

  // Requires get(). Failures make it unhealthy.
  absl::Status Write(DiskDatabase::Batch& batch);

  // Everything written before the call, in `epoch`, is durable. Unavailable if the database was
  // opened again since or a write failed: some of it may be lost.
  absl::Status Sync(uint64_t epoch);

  // Takes note of a failure to write, and returns it.
  absl::Status Failed(absl::Status status);

 private:
  const std::string path_;
  rocksdb::Env* const env_;
  const std::shared_ptr<const ValueCipher> cipher_;
  const OnChange on_change_;
  absl::Time recovered_at_ = absl::InfinitePast();  // last tried; of the one thread
  mutable std::mutex mutex_;                        // guards what follows
  std::shared_ptr<DiskDatabase> database_;
  std::atomic<bool> healthy_{true};
  std::atomic<uint64_t> write_errors_{0};
  std::atomic<uint64_t> written_{0};  // batches
  std::atomic<uint64_t> synced_{0};   // of these
  std::atomic<uint64_t> epoch_{0};
};

}  // namespace fourierkv
