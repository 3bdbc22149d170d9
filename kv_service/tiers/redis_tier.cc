#include "kv_service/tiers/redis_tier.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/redis/circuit_breaker.h"
#include "kv_service/redis/redis_metrics_source.h"
#include "kv_service/tiers/redis_profiles.h"
#include "kv_service/tiers/redis_records.h"
#include "kv_service/tiers/redis_refresher.h"

namespace fourierkv {
namespace {

constexpr int kLoadBatch = 8;
// In a row. The client leaves alone single nodes that fail; that does not open this breaker as long
// as others serve.
constexpr CircuitBreakerOptions kBreaker{
    .failures_to_open = 8, .first_pause = absl::Milliseconds(500), .max_pause = absl::Seconds(10)};

class RedisTier final : public SegmentTier, public RedisMetricsSource {
 public:
  RedisTier(std::unique_ptr<RedisClient> client, const RedisTierOptions& options,
            ProfileStore* profiles, NamespaceDirectory* namespaces)
      : client_(std::move(client)),
        records_(client_.get(), {.key_prefix = options.key_prefix,
                                 .ttl = options.ttl,
                                 .chunk_bytes = options.chunk_bytes,
                                 .wait_replicas = options.wait_replicas,
                                 .wait_timeout = options.client.connection.stall_timeout / 2}),
        profiles_(client_.get(), options.key_prefix, profiles),
        namespaces_(namespaces),
        breaker_(kBreaker),
        refresher_(&records_, options.ttl) {}

  absl::string_view name() const override { return "redis"; }
  Durability durability() const override { return Durability::kShared; }
  int load_batch() const override { return kLoadBatch; }

  absl::Status Store(std::span<const StoredSegment> segments, const Patience& patience) override;
  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(
      std::span<const BlockKey> keys, const Patience& patience) override;
  std::vector<absl::StatusOr<FormPtr>> Load(std::span<const TierWant> wants, MemoryBudget& budget,
                                            const Patience& patience) override;
  absl::Status Remove(std::span<const BlockKey> keys, const Patience& patience) override;
  void Touch(std::span<const BlockKey> keys, absl::Time until) override {
    if (!breaker_.open()) refresher_.Add(keys, until);
  }
  absl::Status StoreProfile(const ProfileLayout& profile, const Patience& patience) override;
  absl::StatusOr<std::vector<std::string>> LoadProfiles(const Patience& patience) override;
  TierStats Stats() const override;
  const RedisMetrics& redis_metrics() const override { return client_->metrics(); }
  void Observe(TierObserver* observer) override { observer_ = observer; }

 private:
  absl::Status Enter();
  absl::Status Leave(absl::Status status);

  absl::Status StoreForms(std::span<const StoredSegment> segments, const Patience& patience);
  absl::StatusOr<TierSegment> Decode(const RedisRecordName& name, absl::string_view description);
  void DropDamaged(const RedisRecordName& name, const RedisRecords::Stored& stored,
                   absl::Time deadline);

  const std::unique_ptr<RedisClient> client_;
  RedisRecords records_;
  RedisProfiles profiles_;
  NamespaceDirectory* const namespaces_;
  CircuitBreaker breaker_;
  TierObserver* observer_ = nullptr;
  std::atomic<uint64_t> damaged_{0};
  std::atomic<uint64_t> write_errors_{0};
  std::atomic<uint64_t> read_errors_{0};
  RedisRefresher refresher_;
};

bool SameIdentity(const StoredSegment& a, const StoredSegment& b) {
  return a.key == b.key && a.parent == b.parent && a.index == b.index && a.tokens == b.tokens &&
         a.tail == b.tail && a.capacity == b.capacity && a.context->root == b.context->root;
}

// The description of one form of a segment that has it.
TierSegment DescriptionOf(const StoredSegment& segment, SegmentForm form) {
  TierSegment described;
  described.segment = segment;
  described.segment.forms = {};
  const FormPtr& held = segment.forms[form];
  described.forms[form] = {.bytes = held->bytes(),
                           .mean_relative_error = held->mean_relative_error(),
                           .max_relative_error = held->max_relative_error()};
  return described;
}

std::vector<RedisRecordName> AllForms(std::span<const BlockKey> keys) {
  std::vector<RedisRecordName> names;
  for (const BlockKey& key : keys) {
    for (const SegmentForm form : kHeldForms) names.push_back({key, form});
  }
  return names;
}

absl::Status RedisTier::Enter() {
  if (breaker_.Allow(absl::Now())) return absl::OkStatus();
  return absl::UnavailableError("Redis failed repeatedly; it is tried again soon");
}

// Takes note of how a call ended. Its status, with a code that the interface knows.
absl::Status RedisTier::Leave(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:  // may have been too short for any cluster
    case absl::StatusCode::kCancelled:
      return status;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInternal:
      status = absl::UnavailableError(status.message());
      if (breaker_.Fail(absl::Now())) {
        Log(LogLevel::kWarning, "redis.unavailable", {{"status", status}});
      }
      return status;
    default:
      if (breaker_.Succeed()) Log(LogLevel::kInfo, "redis.available");
      return status;
  }
}

absl::Status RedisTier::Store(std::span<const StoredSegment> segments, const Patience& patience) {
  if (absl::Status s = Enter(); !s.ok()) return s;
  absl::Status status = Leave(StoreForms(segments, patience));
  if (!status.ok() && !absl::IsCancelled(status)) ++write_errors_;
  if (!status.ok() || observer_ == nullptr) return status;
  for (const StoredSegment& segment : segments) {
    TierSegment held;
    held.segment = segment;
    held.segment.forms = {};
    for (const SegmentForm form : kHeldForms) {
      if (segment.forms[form] != nullptr) {
        held.forms[form] = DescriptionOf(segment, form).forms[form];
      }
    }
    if (HoldsAnything(held)) observer_->TierHolds(Durability::kShared, held);
  }
  return status;
}

absl::Status RedisTier::StoreForms(std::span<const StoredSegment> segments,
                                   const Patience& patience) {
  absl::flat_hash_set<Digest> put;
  std::vector<RedisRecordName> names;
  std::vector<const StoredSegment*> owners;
  for (const StoredSegment& segment : segments) {
    const auto& layout = segment.context->layout;
    if (layout != nullptr && put.insert(layout->id()).second) {
      if (absl::Status s = profiles_.Put(*layout, patience.deadline()); !s.ok()) return s;
    }
    for (const SegmentForm form : kHeldForms) {
      if (segment.forms[form] == nullptr) continue;
      names.push_back({segment.key, form});
      owners.push_back(&segment);
    }
  }
  const auto stored = records_.ReadManifests(names, patience.deadline());
  std::vector<std::unique_ptr<RecordWriter>> writers;
  std::vector<RedisRecords::Writing> writings;
  for (size_t i = 0; i < names.size(); ++i) {
    const RedisRecordName& name = names[i];
    if (!stored[i].ok() && !absl::IsNotFound(stored[i].status())) return stored[i].status();
    const TierSegment described = DescriptionOf(*owners[i], name.form);
    if (stored[i].ok()) {
      auto held = stored[i]->manifest.has_value() ? Decode(name, stored[i]->manifest->description)
                                                  : absl::DataLossError("");
      const bool unreadable = absl::IsDataLoss(held.status()) || absl::IsNotFound(held.status());
      if (!held.ok() && !unreadable) return held.status();
      const auto whole =
          held.ok() ? records_.Refresh(name, stored[i]->manifest->place, patience.deadline())
                    : absl::StatusOr<bool>(false);
      if (!whole.ok()) return whole.status();
      if (*whole && (described.segment.error_bound < held->segment.error_bound ||
                     described.segment.expires > held->segment.expires)) {
        StoredSegment& known = held->segment;
        known.error_bound = std::min(known.error_bound, described.segment.error_bound);
        known.expires = std::max(known.expires, described.segment.expires);
        absl::Status s = records_.Redescribe(name, *stored[i], EncodeDescription(*held),
                                             known.expires, patience.deadline());
        if (!s.ok()) return s;
      }
      if (*whole) continue;
      // Damaged, or no longer whole: it makes room.
      if (absl::Status s = records_.Drop(name, *stored[i], patience.deadline()); !s.ok()) return s;
    }
    writers.push_back(std::make_unique<RecordWriter>(*owners[i], name.form));
    writings.push_back(
        {name, writers.back().get(), EncodeDescription(described), described.segment.expires});
  }
  return records_.Write(writings, patience);
}

// The description, which must be of that record. A codec profile that is not known here is asked of
// RedisProfiles.
absl::StatusOr<TierSegment> RedisTier::Decode(const RedisRecordName& name,
                                              absl::string_view description) {
  auto decoded = DecodeDescription(
      description, [&](absl::string_view encoded) { return namespaces_->Resolve(encoded); });
  if (!decoded.ok()) return decoded;
  if (decoded->segment.key != name.key || decoded->forms[name.form].bytes == 0) {
    return absl::DataLossError("a manifest in Redis is of another record");
  }
  return decoded;
}

absl::StatusOr<std::vector<std::optional<TierSegment>>> RedisTier::Describe(
    std::span<const BlockKey> keys, const Patience& patience) {
  if (absl::Status s = Enter(); !s.ok()) return s;
  const std::vector<RedisRecordName> names = AllForms(keys);
  const auto stored = records_.ReadManifests(names, patience.deadline());
  std::vector<std::optional<TierSegment>> result(keys.size());
  absl::Status failure = absl::OkStatus();
  bool any_answer = names.empty();
  for (size_t i = 0; i < names.size(); ++i) {
    any_answer = any_answer || stored[i].ok() || absl::IsNotFound(stored[i].status());
    if (!stored[i].ok()) {
      if (!absl::IsNotFound(stored[i].status())) failure = stored[i].status();
      continue;
    }
    auto described = stored[i]->manifest.has_value()
                         ? Decode(names[i], stored[i]->manifest->description)
                         : absl::DataLossError("");
    if (absl::IsDataLoss(described.status()))
      DropDamaged(names[i], *stored[i], patience.deadline());
    if (!described.ok()) continue;
    std::optional<TierSegment>& whole = result[i / std::size(kHeldForms)];
    if (!whole.has_value()) {
      whole = *std::move(described);
    } else if (SameIdentity(whole->segment, described->segment)) {
      whole->forms[names[i].form] = described->forms[names[i].form];
      whole->segment.error_bound =
          std::min(whole->segment.error_bound, described->segment.error_bound);
      whole->segment.expires = std::max(whole->segment.expires, described->segment.expires);
    }
  }
  if (!failure.ok()) ++read_errors_;
  // Segments of nodes that do not answer are missing, as long as some node does.
  absl::Status status = Leave(any_answer ? absl::OkStatus() : failure);
  if (!status.ok()) return status;
  return result;
}

std::vector<absl::StatusOr<FormPtr>> RedisTier::Load(std::span<const TierWant> wants,
                                                     MemoryBudget& budget,
                                                     const Patience& patience) {
  std::vector<absl::StatusOr<FormPtr>> results(wants.size(), absl::UnknownError(""));
  if (absl::Status s = Enter(); !s.ok()) {
    std::fill(results.begin(), results.end(), s);
    return results;
  }
  std::vector<RedisRecordName> names;
  for (const TierWant& want : wants) names.push_back({want.segment->key, want.form});
  const auto stored = records_.ReadManifests(names, patience.deadline());
  std::vector<std::unique_ptr<RecordReader>> readers;
  std::vector<RedisRecords::Reading> readings;
  for (size_t i = 0; i < wants.size(); ++i) {
    readers.push_back(std::make_unique<RecordReader>(*wants[i].segment, wants[i].form, budget));
    RedisRecords::Reading reading{.name = names[i], .place = {}, .add = {}, .status = {}};
    if (!stored[i].ok()) {
      reading.status = stored[i].status();
    } else if (!stored[i]->manifest.has_value()) {
      reading.status = absl::DataLossError("the record's manifest in Redis is damaged");
    } else {
      reading.place = stored[i]->manifest->place;
      reading.add = [reader = readers.back().get()](std::span<const std::byte> bytes) {
        return reader->Add(bytes);
      };
    }
    readings.push_back(std::move(reading));
  }
  records_.Read(readings, patience);
  bool any_answer = wants.empty();
  absl::Status failure = absl::OkStatus();
  for (size_t i = 0; i < wants.size(); ++i) {
    absl::Status status = readings[i].status;
    if (status.ok()) {
      results[i] = readers[i]->Finish();
      status = results[i].status();
    }
    if (stored[i].ok() && absl::IsDataLoss(status))
      DropDamaged(names[i], *stored[i], patience.deadline());
    if (stored[i].ok() && absl::IsNotFound(status)) {
      (void)records_.Drop(names[i], *stored[i], patience.deadline());  // what is left of it
    }
    const bool answered = status.ok() || absl::IsNotFound(status) || absl::IsDataLoss(status) ||
                          absl::IsResourceExhausted(status);
    any_answer = any_answer || answered;
    if (status.ok()) continue;
    if (!answered) failure = status;
    results[i] = answered || IsGivenUp(status) ? status : absl::UnavailableError(status.message());
  }
  if (!failure.ok() && !absl::IsCancelled(failure)) ++read_errors_;
  (void)Leave(any_answer ? absl::OkStatus() : failure);
  return results;
}

void RedisTier::DropDamaged(const RedisRecordName& name, const RedisRecords::Stored& stored,
                            absl::Time deadline) {
  ++damaged_;
  Log(LogLevel::kWarning, "redis.damaged_record",
      {{"key", name.key.ToHex()}, {"form", FormName(name.form)}});
  // If that fails, it is found damaged again.
  (void)records_.Drop(name, stored, deadline);
}

absl::Status RedisTier::Remove(std::span<const BlockKey> keys, const Patience& patience) {
  if (absl::Status s = Enter(); !s.ok()) return s;
  const std::vector<RedisRecordName> names = AllForms(keys);
  const auto stored = records_.ReadManifests(names, patience.deadline());
  absl::Status status = Leave(records_.Delete(names, stored, patience.deadline()));
  if (!status.ok()) ++write_errors_;
  if (!status.ok() || observer_ == nullptr) return status;
  const BlockKey* told = nullptr;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!stored[i].ok() || !stored[i]->manifest.has_value()) continue;
    if (told != nullptr && *told == names[i].key) continue;
    const auto held = Decode(names[i], stored[i]->manifest->description);
    if (!held.ok()) continue;
    told = &names[i].key;
    observer_->TierLost(Durability::kShared, held->segment, RemovalReason::kDeleted);
  }
  return status;
}

absl::Status RedisTier::StoreProfile(const ProfileLayout& profile, const Patience& patience) {
  if (absl::Status s = Enter(); !s.ok()) return s;
  absl::Status status = Leave(profiles_.Put(profile, patience.deadline()));
  if (!status.ok()) ++write_errors_;
  return status;
}

absl::StatusOr<std::vector<std::string>> RedisTier::LoadProfiles(const Patience& patience) {
  if (absl::Status s = Enter(); !s.ok()) return s;
  auto profiles = profiles_.ReadAll(patience.deadline());
  if (absl::Status s = Leave(profiles.status()); !s.ok()) {
    ++read_errors_;
    return s;
  }
  return profiles;
}

TierStats RedisTier::Stats() const {
  TierStats stats;
  stats.damaged_records = damaged_ + profiles_.damaged();
  stats.write_errors = write_errors_;
  stats.read_errors = read_errors_;
  stats.healthy = !breaker_.open();
  return stats;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentTier>> OpenRedisTier(RedisTierOptions options,
                                                           ProfileStore* profiles,
                                                           NamespaceDirectory* namespaces) {
  if (options.key_prefix.empty() || options.key_prefix.size() > 64 ||
      !std::all_of(options.key_prefix.begin(), options.key_prefix.end(), [](char c) {
        return absl::ascii_isgraph(static_cast<unsigned char>(c)) && c != '{' && c != '}';
      })) {
    return absl::InvalidArgumentError(
        "the key prefix must have 1 to 64 printable characters, no braces and no spaces");
  }
  if (options.chunk_bytes < 1 || options.chunk_bytes > kMaxRedisChunkBytes ||
      options.chunk_bytes >= options.client.connection.max_reply_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_bytes must be at least 1, at most ",
                                                   kMaxRedisChunkBytes,
                                                   " and below the largest reply"));
  }
  if (options.ttl <= absl::ZeroDuration() || options.ttl > absl::Hours(24 * 365)) {
    return absl::InvalidArgumentError("the time to live must be positive and at most a year");
  }
  if (options.wait_replicas < 0 || options.wait_replicas > 16) {
    return absl::InvalidArgumentError("wait_replicas must be 0 to 16");
  }
  auto client = RedisClient::Create(options.client);
  if (!client.ok()) return client.status();
  return std::unique_ptr<SegmentTier>(
      new RedisTier(*std::move(client), options, profiles, namespaces));
}

}  // namespace fourierkv
