#include "kv_service/core/profile_store.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "compute/codec/profile.h"

namespace fourierkv {

ProfileStore::ProfileStore(int64_t max_profiles, int64_t max_json_bytes)
    : max_profiles_(max_profiles), max_json_bytes_(max_json_bytes) {}

absl::StatusOr<std::shared_ptr<const ProfileLayout>> ProfileStore::Put(absl::string_view json) {
  auto profile = CodecProfile::FromJson(json);
  if (!profile.ok()) return profile.status();
  return Put(*profile);
}

absl::StatusOr<std::shared_ptr<const ProfileLayout>> ProfileStore::Put(
    const CodecProfile& profile) {
  if (auto s = profile.Validate(); !s.ok()) return s;
  if (auto known = Find(profile.Id()); known != nullptr) return known;
  const int64_t json_bytes = static_cast<int64_t>(profile.ToJson().size());
  auto layout = std::make_shared<const ProfileLayout>(profile);  // slow: not under the lock
  std::lock_guard<std::mutex> lock(mutex_);
  if (const auto it = profiles_.find(layout->id()); it != profiles_.end()) return it->second;
  if (static_cast<int64_t>(profiles_.size()) >= max_profiles_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("profiles: ", max_profiles_, " are held, which is the most; use one of them"));
  }
  if (json_bytes > max_json_bytes_ - json_bytes_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("profiles: ", json_bytes_, " of ", max_json_bytes_,
                     " bytes are used; this one needs ", json_bytes));
  }
  json_bytes_ += json_bytes;
  profiles_.emplace(layout->id(), layout);
  return layout;
}

std::shared_ptr<const ProfileLayout> ProfileStore::Find(const Digest& id) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = profiles_.find(id);
  return it == profiles_.end() ? nullptr : it->second;
}

absl::StatusOr<std::shared_ptr<const ProfileLayout>> ProfileStore::Get(const Digest& id) const {
  if (auto known = Find(id); known != nullptr) return known;
  if (source_ != nullptr) {
    auto asked = source_(id);
    if (!absl::IsNotFound(asked.status())) return asked;
  }
  return absl::NotFoundError(
      absl::StrCat("codec profile ", id.ToHex(), " is not known here; put it first"));
}

std::vector<std::shared_ptr<const ProfileLayout>> ProfileStore::List() const {
  std::vector<std::shared_ptr<const ProfileLayout>> list;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    list.reserve(profiles_.size());
    for (const auto& [id, layout] : profiles_) list.push_back(layout);
  }
  std::sort(list.begin(), list.end(), [](const auto& a, const auto& b) {
    return std::tie(a->profile().name, a->id()) < std::tie(b->profile().name, b->id());
  });
  return list;
}

}  // namespace fourierkv
