// Finds the codec profile that harms a model least for its bytes.
//
//   1. Every representation of every channel is tried on real caches: its error, weighed by what
//   the
//      channel means to attention (head_costs.h).
//   2. Every head is compressed alone, and what that does to the model's predictions is measured:
//   its
//      sensitivity, harm per weighted error. Heads differ by factors of thousands.
//   3. Bits go where they prevent most harm (allocation.h).
//   4. The profile found is measured as a whole; for a quality budget, the ratio is bisected.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "clients/search/head_costs.h"
#include "clients/search/representation.h"
#include "clients/search/search_probe.h"
#include "clients/search/search_state.h"
#include "compute/codec/profile.h"

namespace fourierkv {

struct SearchOptions {
  std::string name;  // of the profile
  // Budget: how many times smaller than bf16 compressed segments must be, headers included.
  double ratio = 16;
  // If > 0, a quality budget instead: the largest ratio from 2 to `ratio` at which the mean KL
  // divergence from dense, over the contexts' tails, stays below this many nats.
  double max_kl = 0;
  std::vector<Representation> representations;  // cheapest first
  CostOptions costs;
  int smallest_band = 4;
};

struct SearchResult {
  CodecProfile profile;  // its evidence says how it was found and what was measured
  double ratio = 0;      // of compressed segments, headers included
  double predicted_harm = 0;
  SearchQuality quality;
  std::vector<HeadCosts> costs;       // index as CodecProfile::heads, and so is:
  std::vector<double> sensitivities;  // harm per weighted error
};

// `progress` is told in words what has been done; `state` keeps sensitivities. InvalidArgument for
// options out of bounds or a budget that cannot be met.
absl::StatusOr<SearchResult> SearchProfile(const SearchProbe& probe, const SearchOptions& options,
                                           SearchState& state,
                                           const std::function<void(absl::string_view)>& progress);

}  // namespace fourierkv
