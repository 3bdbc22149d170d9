// The contexts of namespaces that were read from a tier, each made once.

#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kv_service/core/cache_namespace.h"
#include "kv_service/core/profile_store.h"

namespace fourierkv {

// Thread safe. `profiles` must outlive it.
class NamespaceDirectory {
 public:
  explicit NamespaceDirectory(const ProfileStore* profiles) : profiles_(profiles) {}

  // Of a namespace as EncodeNamespace (segment_record.h) gives it. DataLoss if it is not one;
  // NotFound if its codec profile is not known here.
  absl::StatusOr<std::shared_ptr<const NamespaceContext>> Resolve(absl::string_view encoded);

 private:
  const ProfileStore* profiles_;
  std::mutex mutex_;  // guards what follows
  absl::flat_hash_map<std::string, std::shared_ptr<const NamespaceContext>> contexts_;
};

}  // namespace fourierkv
