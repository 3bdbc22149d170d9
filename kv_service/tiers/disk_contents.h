// What a disk database holds, read when it is opened.

#pragma once

#include <cstdint>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/tiers/disk_database.h"
#include "kv_service/tiers/disk_index.h"

namespace fourierkv {

struct DiskContents {
  DiskIndex index;
  absl::flat_hash_set<Digest> profiles;
  uint64_t sequence = 0;  // the highest of a description
  uint64_t lost = 0;      // descriptions that were damaged, or whose parents were
};

// Reads it, payload untouched: profiles are added to `profiles`, what was never finished and what
// is lost is deleted. The database's statuses.
absl::StatusOr<DiskContents> ReadDiskContents(DiskDatabase& database, ProfileStore& profiles,
                                              NamespaceDirectory& namespaces);

}  // namespace fourierkv
