#include "kv_service/rpc/tenant_quotas.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "proto/support/retry_info.h"

namespace fourierkv {
namespace {

using nlohmann::json;

constexpr size_t kMostIdle = 4096;
constexpr double kMostNumber = 1e15;

absl::StatusOr<TenantQuota> ParseQuota(const json& object, const std::string& where,
                                       TenantQuota quota) {
  const auto fault = [&](const std::string& field, absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(where, field, " ", why));
  };
  if (!object.is_object()) return fault("", "is not an object");
  for (const auto& [field, value] : object.items()) {
    double* real = nullptr;
    int64_t* whole = nullptr;
    if (field == "requests_per_second") real = &quota.requests_per_second;
    if (field == "burst") real = &quota.burst;
    if (field == "streams") whole = &quota.streams;
    if (field == "in_flight_bytes") whole = &quota.in_flight_bytes;
    if (field == "stored_bytes") whole = &quota.stored_bytes;
    if (field == "disk_bytes") whole = &quota.disk_bytes;
    const std::string name = absl::StrCat(".", field);
    if (real == nullptr && whole == nullptr) {
      return fault(name,
                   "is unknown; there are requests_per_second, burst, streams, in_flight_bytes, "
                   "stored_bytes and disk_bytes");
    }
    const double number = value.is_number() ? value.get<double>() : -1;
    if (!(number >= 0 && number <= kMostNumber)) {
      return fault(name, "is not a number from 0, which means no limit, to 1e15");
    }
    if (whole != nullptr && number != std::floor(number)) return fault(name, "is not whole");
    if (real != nullptr) {
      *real = number;
    } else {
      *whole = static_cast<int64_t>(number);
    }
  }
  return quota;
}

}  // namespace

const TenantQuota& QuotaTable::Of(const std::string& tenant) const {
  const auto it = tenants.find(tenant);
  return it == tenants.end() ? defaults : it->second;
}

absl::StatusOr<QuotaTable> ParseQuotas(absl::string_view text) {
  const json root = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return absl::InvalidArgumentError("is not a JSON object");
  QuotaTable table;
  for (const auto& [name, value] : root.items()) {
    if (name != "default" && name != "tenants") {
      return absl::InvalidArgumentError(
          absl::StrCat("'", name, "' is unknown; there are 'default' and 'tenants'"));
    }
  }
  if (const auto it = root.find("default"); it != root.end()) {
    absl::StatusOr<TenantQuota> quota = ParseQuota(*it, "default", {});
    if (!quota.ok()) return quota.status();
    table.defaults = *quota;
  }
  const auto tenants = root.find("tenants");
  if (tenants == root.end()) return table;
  if (!tenants->is_object()) return absl::InvalidArgumentError("tenants is not an object");
  for (const auto& [name, value] : tenants->items()) {
    absl::StatusOr<TenantQuota> quota =
        ParseQuota(value, absl::StrCat("tenants.", name), table.defaults);
    if (!quota.ok()) return quota.status();
    table.tenants.emplace(name, *quota);
  }
  return table;
}

absl::StatusOr<std::unique_ptr<TenantQuotas>> TenantQuotas::Open(const std::string& flag,
                                                                 const std::string& path) {
  auto file = ReloadedFile<QuotaTable>::Open(flag, path, &ParseQuotas);
  if (!file.ok()) return file.status();
  return std::unique_ptr<TenantQuotas>(new TenantQuotas(*std::move(file)));
}

TenantQuotas::Share& TenantQuotas::Share::operator=(Share&& other) noexcept {
  if (this == &other) return *this;
  GiveBack();
  quotas_ = std::exchange(other.quotas_, nullptr);
  tenant_ = std::move(other.tenant_);
  what_ = other.what_;
  amount_ = other.amount_;
  return *this;
}

void TenantQuotas::Share::GiveBack() {
  if (quotas_ == nullptr) return;
  std::lock_guard lock(quotas_->mutex_);
  quotas_->UsageOf(tenant_).*what_ -= amount_;
  quotas_ = nullptr;
}

std::shared_ptr<const QuotaTable> TenantQuotas::table() {
  return file_ != nullptr ? file_->Get() : fixed_;
}

TenantQuotas::Usage& TenantQuotas::UsageOf(const std::string& tenant) {
  if (usage_.size() >= kMostIdle && !usage_.contains(tenant)) {
    absl::erase_if(usage_, [](const auto& entry) {
      return entry.second.streams == 0 && entry.second.in_flight_bytes == 0;
    });
  }
  return usage_[tenant];
}

absl::Status TenantQuotas::TakeRequest(const std::string& tenant, absl::Time now) {
  const std::shared_ptr<const QuotaTable> limits = table();
  if (limits == nullptr) return absl::OkStatus();
  const TenantQuota& quota = limits->Of(tenant);
  if (quota.requests_per_second <= 0) return absl::OkStatus();
  const double burst = std::max(1.0, quota.burst > 0 ? quota.burst : quota.requests_per_second);
  std::lock_guard lock(mutex_);
  Usage& usage = UsageOf(tenant);
  // A bucket that nobody has used for long is full; a clock that goes back fills nothing.
  const double since = std::max(0.0, absl::ToDoubleSeconds(now - usage.refilled));
  usage.tokens = std::min(burst, usage.tokens + since * quota.requests_per_second);
  usage.refilled = now;
  if (usage.tokens >= 1) {
    usage.tokens -= 1;
    return absl::OkStatus();
  }
  return WithRetryAfter(absl::ResourceExhaustedError(
                            absl::StrCat("the tenant has made its ", quota.requests_per_second,
                                         " requests a second; retry later")),
                        absl::Seconds((1 - usage.tokens) / quota.requests_per_second));
}

absl::StatusOr<TenantQuotas::Share> TenantQuotas::TakeStream(const std::string& tenant) {
  const std::shared_ptr<const QuotaTable> limits = table();
  const int64_t limit = limits == nullptr ? 0 : limits->Of(tenant).streams;
  return Take(tenant, &Usage::streams, 1, limit, "puts and fetches at the same time");
}

absl::StatusOr<TenantQuotas::Share> TenantQuotas::TakeInFlight(const std::string& tenant,
                                                               int64_t bytes) {
  const std::shared_ptr<const QuotaTable> limits = table();
  const int64_t limit = limits == nullptr ? 0 : limits->Of(tenant).in_flight_bytes;
  return Take(tenant, &Usage::in_flight_bytes, bytes, limit, "bytes in running puts");
}

int64_t TenantQuotas::StoredLimit(const std::string& tenant) {
  const std::shared_ptr<const QuotaTable> limits = table();
  return limits == nullptr ? 0 : limits->Of(tenant).stored_bytes;
}

int64_t TenantQuotas::DiskLimit(const std::string& tenant) {
  const std::shared_ptr<const QuotaTable> limits = table();
  return limits == nullptr ? 0 : limits->Of(tenant).disk_bytes;
}

absl::StatusOr<TenantQuotas::Share> TenantQuotas::Take(const std::string& tenant,
                                                       int64_t Usage::*what, int64_t amount,
                                                       int64_t limit, const char* name) {
  Share share;
  if (limit <= 0) return share;
  std::lock_guard lock(mutex_);
  Usage& usage = UsageOf(tenant);
  if (amount > limit) {
    // Never possible: no advice to come again.
    return absl::InvalidArgumentError(absl::StrCat("this call needs ", amount, " of the tenant's ",
                                                   limit, " ", name, "; split it"));
  }
  if (usage.*what > limit - amount) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat("the tenant has ", usage.*what, " of its ", limit,
                                                  " ", name, "; retry later")),
        kDefaultRetryDelay);
  }
  usage.*what += amount;
  share.quotas_ = this;
  share.tenant_ = tenant;
  share.what_ = what;
  share.amount_ = amount;
  return share;
}

}  // namespace fourierkv
