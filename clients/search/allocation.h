// Gives every channel of a model the representation that does least harm for its bits.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/search/head_costs.h"
#include "clients/search/representation.h"
#include "compute/codec/profile.h"

namespace fourierkv {

struct AllocationOptions {
  BasisKind basis = BasisKind::kDct2;
  int segment_tokens = 256;
  // Bands of fewer channels are joined with the next richer band of their head, if it has one:
  // kernels work band by band.
  int smallest_band = 4;
};

// Index into the representations, for every channel of one head.
using HeadChoice = std::vector<uint8_t>;

struct Allocation {
  std::vector<HeadChoice> heads;  // index as CodecProfile::heads
  double bits_per_value = 0;      // over all heads; the padding between bands is not counted
  double harm = 0;                // predicted: sum of sensitivity x error over all channels
};

// Minimises sum(sensitivity x error) for at most `bits_per_value` on average, by the Lagrangian:
// each channel takes the representation with the least harm + lambda x bits, and lambda is bisected
// (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988).
// `sensitivities`: one per head. InvalidArgument if not even the cheapest representation fits.
absl::StatusOr<Allocation> Allocate(std::span<const HeadCosts> heads,
                                    std::span<const double> sensitivities,
                                    std::span<const Representation> representations,
                                    double bits_per_value, const AllocationOptions& options);

// One head: its bands in canonical order, and its rotation.
HeadProfile MakeHeadProfile(const HeadCosts& costs, const HeadChoice& choice,
                            std::span<const Representation> representations);

}  // namespace fourierkv
