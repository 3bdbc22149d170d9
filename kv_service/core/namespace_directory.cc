#include "kv_service/core/namespace_directory.h"

#include <utility>

#include "kv_service/core/segment_record.h"

namespace fourierkv {
namespace {
// Contexts stay alive with the segments that use them; this is only about finding them again.
constexpr size_t kMaxContexts = 65536;
}  // namespace

absl::StatusOr<std::shared_ptr<const NamespaceContext>> NamespaceDirectory::Resolve(
    absl::string_view encoded) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (const auto it = contexts_.find(encoded); it != contexts_.end()) return it->second;
  }
  auto ns = DecodeNamespace(encoded);
  if (!ns.ok()) return ns.status();
  std::shared_ptr<const ProfileLayout> layout;
  if (ns->profile_id.has_value()) {
    auto known = profiles_->Get(*ns->profile_id);
    if (!known.ok()) return known.status();
    layout = *std::move(known);
  }
  auto context = MakeNamespaceContext(*std::move(ns), std::move(layout));
  if (!context.ok()) return absl::DataLossError(context.status().message());
  std::lock_guard<std::mutex> lock(mutex_);
  if (contexts_.size() >= kMaxContexts) contexts_.clear();
  return contexts_.emplace(std::string(encoded), *std::move(context)).first->second;
}

}  // namespace fourierkv
