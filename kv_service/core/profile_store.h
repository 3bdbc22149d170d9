// The codec profiles that a service knows.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/base/content_hash.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

// Profiles by the hash of their content: immutable, never removed. Thread safe.
class ProfileStore {
 public:
  explicit ProfileStore(int64_t max_profiles = 1024, int64_t max_json_bytes = int64_t{256} << 20);

  // Parses, validates and adds a profile; the one already there if it is known. InvalidArgument
  // naming the field at fault; ResourceExhausted when the store is full, by count or by canonical
  // text bytes.
  absl::StatusOr<std::shared_ptr<const ProfileLayout>> Put(absl::string_view json);
  // The same for a profile that is valid already.
  absl::StatusOr<std::shared_ptr<const ProfileLayout>> Put(const CodecProfile& profile);

  // NotFound naming the id; with a source, also the source's errors.
  absl::StatusOr<std::shared_ptr<const ProfileLayout>> Get(const Digest& id) const;

  // Asked by Get, which then may block, for profiles that are not here: others may have put them
  // where this process can read. It returns them when they are in this store, or NotFound. Null:
  // nobody is asked. Not beside other calls.
  using Source =
      std::function<absl::StatusOr<std::shared_ptr<const ProfileLayout>>(const Digest& id)>;
  void SetSource(Source source) { source_ = std::move(source); }

  // Ordered by name, then id.
  std::vector<std::shared_ptr<const ProfileLayout>> List() const;

 private:
  // Null if it is not here.
  std::shared_ptr<const ProfileLayout> Find(const Digest& id) const;

  Source source_;
  const int64_t max_profiles_;
  const int64_t max_json_bytes_;
  mutable std::mutex mutex_;  // guards what follows
  int64_t json_bytes_ = 0;
  absl::flat_hash_map<Digest, std::shared_ptr<const ProfileLayout>> profiles_;
};

}  // namespace fourierkv
