// Makes the archive section of a profile from the same contexts and sensitivities as its bands.

#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "clients/search/profile_search.h"
#include "clients/search/search_probe.h"
#include "compute/codec/archive_profile.h"

namespace fourierkv {

struct ArchiveSearchOptions {
  // How many times smaller than bf16 archived segments must be, headers included: 2 to 1000.
  double ratio = 40;
  // If > 0: a smaller ratio if needed to keep the mean KL divergence from dense below this.
  double max_kl = 0;
  int64_t recent_window = 1024;
};

struct ArchiveSearchResult {
  ArchiveProfile archive;
  double ratio = 0;  // measured, headers included
  SearchQuality quality;
};

// For `found`, of the same contexts. The one unknown is the quantiser's step, which is bisected.
// InvalidArgument for options out of bounds or a target that cannot be met.
absl::StatusOr<ArchiveSearchResult> SearchArchive(
    const SearchProbe& probe, const SearchResult& found, const ArchiveSearchOptions& options,
    const std::function<void(absl::string_view)>& progress);

}  // namespace fourierkv
