// The tier on this machine's disk.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/core/segment_tier.h"

namespace rocksdb {
class Env;
}

namespace fourierkv {

struct DiskTierOptions {
  std::string path;  // a directory of its own; made if absent
  // Of the payload's files. What is held stays below kLiveShare of it; the rest is room for garbage
  // until that is collected. Logs and tables beside it take up to about 600 MB.
  int64_t limit_bytes = int64_t{64} << 30;
  rocksdb::Env* env = nullptr;  // null: the system's; for tests that make it fail
};

inline constexpr double kLiveShare = 0.8;

// Opens the tier, with everything that was stored before: its profiles are added to `profiles`, and
// its index is read, payload untouched. Statuses as DiskDatabase::Open; InvalidArgument for a limit
// below 1 MiB. `profiles` and `namespaces` must outlive it.
//
// Parents stay as long as their children: Store requires them, eviction (least recently used first)
// takes segments without children only. After a write failed, the tier is not healthy: it answers
// Unavailable to Store and Remove, and tries every few seconds to get over it.
absl::StatusOr<std::unique_ptr<SegmentTier>> OpenDiskTier(const DiskTierOptions& options,
                                                          ProfileStore* profiles,
                                                          NamespaceDirectory* namespaces);

}  // namespace fourierkv
