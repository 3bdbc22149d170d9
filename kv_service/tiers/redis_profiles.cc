#include "kv_service/tiers/redis_profiles.h"

#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "kv_service/tiers/redis_manifest.h"

namespace fourierkv {
namespace {

// With a request that names a codec profile that is not known here.
constexpr absl::Duration kProfilePatience = absl::Seconds(1);

}  // namespace

RedisProfiles::RedisProfiles(RedisClient* client, const std::string& key_prefix,
                             ProfileStore* store)
    : client_(client), key_(RedisKeys(key_prefix).Profiles()), store_(store) {
  store_->SetSource([this](const Digest& id) { return Find(id); });
}

RedisProfiles::~RedisProfiles() { store_->SetSource(nullptr); }

absl::Status RedisProfiles::Put(const ProfileLayout& profile, absl::Time deadline) {
  const std::string field = profile.id().ToHex();
  const auto there = client_->RunOne(RedisCommand::Of({"HEXISTS", key_, field}), deadline);
  if (!there.ok()) return there.status();
  if (there->integer == 1) return absl::OkStatus();
  return client_
      ->RunOne(RedisCommand::Of({"HSET", key_, field, profile.profile().ToJson()}), deadline)
      .status();
}

absl::StatusOr<std::vector<std::string>> RedisProfiles::ReadAll(absl::Time deadline) {
  const auto fields = client_->RunOne(RedisCommand::Of({"HKEYS", key_}), deadline);
  if (!fields.ok()) return fields.status();
  std::vector<std::string> profiles;
  for (const RedisReply& field : fields->elements) {
    const auto id = Digest::FromHex(field.text, "profile id");
    if (!id.ok()) continue;
    const auto profile = store_->Get(*id);
    if (profile.ok()) {
      profiles.push_back((*profile)->profile().ToJson());
    } else if (!absl::IsNotFound(profile.status())) {
      return profile.status();
    }
  }
  return profiles;
}

// For the profile store, when it is asked for what it does not have.
absl::StatusOr<std::shared_ptr<const ProfileLayout>> RedisProfiles::Find(const Digest& id) {
  // Past the breaker: also called within calls that passed it, and its only leave may be theirs.
  // The nodes' own breakers make this fail fast.
  auto profile = Fetch(id.ToHex(), absl::Now() + kProfilePatience);
  if (profile.ok() || absl::IsNotFound(profile.status())) return profile;
  return absl::UnavailableError(profile.status().message());
}

// A profile whose content is not what its id says is deleted: NotFound.
absl::StatusOr<std::shared_ptr<const ProfileLayout>> RedisProfiles::Fetch(const std::string& hex,
                                                                          absl::Time deadline) {
  const auto json = client_->RunOne(RedisCommand::Of({"HGET", key_, hex}), deadline);
  if (!json.ok()) return json.status();
  if (!json->IsString()) return absl::NotFoundError("Redis has no such codec profile");
  const auto parsed = CodecProfile::FromJson(json->text);
  if (parsed.ok() && parsed->Id().ToHex() == hex) return store_->Put(*parsed);
  ++damaged_;
  Log(LogLevel::kWarning, "redis.damaged_profile", {{"profile_id", hex}});
  (void)client_->RunOne(RedisCommand::Of({"HDEL", key_, hex}), deadline);
  return absl::NotFoundError("a codec profile in Redis was damaged");
}

}  // namespace fourierkv
