// Codec profiles in Redis: what one replica knows every other finds.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/redis/redis_client.h"

namespace fourierkv {

// A hash of profiles as JSON, by their ids. While it lives it is the source of `store`, which is so
// asked for a profile that it does not have. Thread safe. Statuses are those of
// RedisClient::RunOne.
class RedisProfiles {
 public:
  // `client` and `store` must outlive it.
  RedisProfiles(RedisClient* client, const std::string& key_prefix, ProfileStore* store);
  ~RedisProfiles();
  RedisProfiles(const RedisProfiles&) = delete;
  RedisProfiles& operator=(const RedisProfiles&) = delete;

  absl::Status Put(const ProfileLayout& profile, absl::Time deadline);
  // As JSON.
  absl::StatusOr<std::vector<std::string>> ReadAll(absl::Time deadline);
  // How many were not what their ids say, and were deleted.
  uint64_t damaged() const { return damaged_; }

 private:
  absl::StatusOr<std::shared_ptr<const ProfileLayout>> Find(const Digest& id);
  absl::StatusOr<std::shared_ptr<const ProfileLayout>> Fetch(const std::string& hex,
                                                             absl::Time deadline);

  RedisClient* const client_;
  const std::string key_;
  ProfileStore* const store_;
  std::atomic<uint64_t> damaged_{0};
};

}  // namespace fourierkv
