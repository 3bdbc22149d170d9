// What one tenant may take of a server: requests, streams, bytes.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/support/reloaded_file.h"

namespace fourierkv {

// 0 means no limit, everywhere.
struct TenantQuota {
  double requests_per_second = 0;  // puts, fetches, matches and all other calls alike
  double burst = 0;                // requests at once after a silence; 0: those of one second
  int64_t streams = 0;             // puts and fetches at the same time
  int64_t in_flight_bytes = 0;     // dense bytes of all tokens of running puts
  int64_t stored_bytes = 0;        // of blobs in memory, when a put is committed
  int64_t disk_bytes = 0;          // of records on disk: beyond it the tenant's own are evicted

  bool operator==(const TenantQuota&) const = default;
};

struct QuotaTable {
  TenantQuota defaults;  // of tenants that are not named
  std::map<std::string, TenantQuota> tenants;

  const TenantQuota& Of(const std::string& tenant) const;
};

// Reads {"default": QUOTA, "tenants": {"NAME": QUOTA, ...}} in JSON, where QUOTA is an object of
// the fields above; what a tenant's lacks is taken from the default. InvalidArgument naming the
// tenant and field for anything that is not a number of at least 0 (whole for streams and bytes),
// and for fields that are unknown.
absl::StatusOr<QuotaTable> ParseQuotas(absl::string_view text);

// Thread safe. Remembers a bounded number of tenants: idle ones are forgotten, which gives them no
// more than a full burst.
class TenantQuotas {
 private:
  struct Usage {
    double tokens = 0;
    absl::Time refilled = absl::InfinitePast();
    int64_t streams = 0;
    int64_t in_flight_bytes = 0;
  };

 public:
  // No limits.
  TenantQuotas() = default;
  // Limits of a file, which is read again when it changes. Errors name `flag`.
  static absl::StatusOr<std::unique_ptr<TenantQuotas>> Open(const std::string& flag,
                                                            const std::string& path);
  // Whether the file, if there is one, could be read again now.
  absl::Status CheckFile() const { return file_ != nullptr ? file_->Check() : absl::OkStatus(); }
  // Fixed limits.
  explicit TenantQuotas(QuotaTable table)
      : fixed_(std::make_shared<const QuotaTable>(std::move(table))) {}

  // Something taken, which is given back on destruction. The quotas must outlive it.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept { *this = std::move(other); }
    Share& operator=(Share&& other) noexcept;
    ~Share() { GiveBack(); }
    void GiveBack();

   private:
    friend class TenantQuotas;
    TenantQuotas* quotas_ = nullptr;
    std::string tenant_;
    int64_t Usage::*what_ = nullptr;
    int64_t amount_ = 0;
  };

  // One request at `now`. ResourceExhausted with the time until there is room for it
  // (retry_info.h).
  absl::Status TakeRequest(const std::string& tenant, absl::Time now);
  // One more stream; a put's bytes before they are sent. ResourceExhausted.
  absl::StatusOr<Share> TakeStream(const std::string& tenant);
  absl::StatusOr<Share> TakeInFlight(const std::string& tenant, int64_t bytes);
  // Who stores knows what is stored (PutPlan::tenant_limit_bytes).
  int64_t StoredLimit(const std::string& tenant);
  int64_t DiskLimit(const std::string& tenant);

 private:
  explicit TenantQuotas(std::unique_ptr<ReloadedFile<QuotaTable>> file) : file_(std::move(file)) {}

  std::shared_ptr<const QuotaTable> table();
  absl::StatusOr<Share> Take(const std::string& tenant, int64_t Usage::*what, int64_t amount,
                             int64_t limit, const char* name);
  Usage& UsageOf(const std::string& tenant);

  std::unique_ptr<ReloadedFile<QuotaTable>> file_;
  std::shared_ptr<const QuotaTable> fixed_;  // if there is no file; null: no limits
  std::mutex mutex_;                         // guards what follows
  absl::flat_hash_map<std::string, Usage> usage_;
};

}  // namespace fourierkv
