#include "kv_service/tiers/recovering_database.h"

#include <utility>

#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/patience.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kRecoverEvery = absl::Seconds(5);
constexpr int kPatience = 100;  // times 10 ms for reads to leave a database that is closed

}  // namespace

RecoveringDatabase::RecoveringDatabase(std::string path, rocksdb::Env* env,
                                       std::shared_ptr<const ValueCipher> cipher,
                                       OnChange on_change)
    : path_(std::move(path)),
      env_(env),
      cipher_(std::move(cipher)),
      on_change_(std::move(on_change)) {}

std::shared_ptr<DiskDatabase> RecoveringDatabase::get() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return database_;
}

absl::Status RecoveringDatabase::Open() {
  auto opened = DiskDatabase::Open(path_, env_, cipher_);
  if (!opened.ok()) return opened.status();
  const std::shared_ptr<DiskDatabase> database = *std::move(opened);
  if (auto s = on_change_(database.get()); !s.ok()) return s;
  std::lock_guard<std::mutex> lock(mutex_);
  database_ = database;
  return absl::OkStatus();
}

absl::Status RecoveringDatabase::Failed(absl::Status status) {
  if (status.ok() || absl::IsNotFound(status) || IsGivenUp(status)) return status;
  if (healthy_.exchange(false)) {
    Log(LogLevel::kError, "disk_tier.failing", {{"status", status}});
  }
  write_errors_.fetch_add(1);
  return status;
}

absl::Status RecoveringDatabase::Recover() {
  if (healthy_) return absl::OkStatus();
  const absl::Time now = absl::Now();
  if (now - recovered_at_ < kRecoverEvery) {
    return absl::UnavailableError("disk tier: an earlier write failed; it is tried again soon");
  }
  recovered_at_ = now;
  if (database_ == nullptr || !database_->Recover().ok()) {
    // What is written to the log but not synced may be lost, so what is held is read anew.
    std::weak_ptr<DiskDatabase> old = database_;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      database_ = nullptr;
    }
    on_change_(nullptr).IgnoreError();  // cannot fail to hold nothing
    epoch_.fetch_add(1);
    for (int i = 0; i < kPatience && !old.expired(); ++i) absl::SleepFor(absl::Milliseconds(10));
    if (auto s = Open(); !s.ok()) return s;
  }
  healthy_ = true;
  Log(LogLevel::kInfo, "disk_tier.recovered");
  return absl::OkStatus();
}

absl::Status RecoveringDatabase::Write(DiskDatabase::Batch& batch) {
  if (auto s = database_->Write(batch); !s.ok()) return Failed(s);
  written_.fetch_add(1);
  return absl::OkStatus();
}

absl::Status RecoveringDatabase::Sync(uint64_t epoch) {
  const uint64_t due = written_.load();
  if (synced_.load() >= due && epoch_.load() == epoch) return absl::OkStatus();
  KillPoint("disk.before_sync");
  const std::shared_ptr<DiskDatabase> database = get();
  if (database == nullptr) return absl::UnavailableError("disk tier: it is being opened again");
  if (auto s = database->Sync(); !s.ok()) return Failed(s);
  KillPoint("disk.after_sync");
  uint64_t synced = synced_.load();
  while (synced < due && !synced_.compare_exchange_weak(synced, due)) continue;
  // A write that failed meanwhile may have been one that this was to make durable.
  if (!healthy_ || epoch_.load() != epoch)
    return absl::UnavailableError("disk tier: a write failed meanwhile");
  return absl::OkStatus();
}

}  // namespace fourierkv
