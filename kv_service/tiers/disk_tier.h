// The tier on this machine's disk.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/tiers/disk_keys.h"

namespace rocksdb {
class Env;
}

namespace fourierkv {

struct DiskTierOptions {
  std::string path;  // a directory of its own; made if absent
  // Of the payload's files. What is held stays below kLiveShare of it; the rest is room for garbage
  // until that is collected. Logs and tables beside it take up to about 600 MB.
  int64_t limit_bytes = int64_t{64} << 30;
  // Of what a tenant's segments take there; 0, and an empty function, is no limit. Asked at every
  // store; thread safe. Whoever has more makes room from his own.
  std::function<int64_t(absl::string_view tenant)> tenant_limit = {};
  // Encrypts what is written with the first one, and reads what was with any (value_cipher.h).
  // Empty: not encrypted.
  std::vector<DiskKey> keys = {};
  rocksdb::Env* env = nullptr;  // null: the system's; for tests that make it fail
  std::function<absl::Time()> clock = &absl::Now;
};

inline constexpr double kLiveShare = 0.8;

// Opens the tier, with everything that was stored before: its profiles are added to `profiles`, and
// its index is read, payload untouched. Statuses as DiskDatabase::Open; InvalidArgument for a limit
// below 1 MiB. `profiles` and `namespaces` must outlive it.
//
// Parents stay as long as their children: Store requires them, eviction (least recently used first)
// takes segments without children only. What was stored for a time is missing when that is over,
// unless it is protected (SegmentTier::Touch), also if the tier was closed meanwhile. After a write
// failed, the tier is not healthy: it answers Unavailable to Store and Remove, and tries every few
// seconds to get over it.
absl::StatusOr<std::unique_ptr<SegmentTier>> OpenDiskTier(const DiskTierOptions& options,
                                                          ProfileStore* profiles,
                                                          NamespaceDirectory* namespaces);

}  // namespace fourierkv
