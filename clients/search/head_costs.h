// What each representation of each channel of a model costs in bits and in error, measured on real
// caches.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/eval/eval_context.h"
#include "clients/search/representation.h"
#include "compute/codec/basis.h"

namespace fourierkv {

// K or V of one KV head. With a rotation U, "channel j" is column j of X U.
struct HeadCosts {
  std::vector<int16_t> rotation;  // as HeadProfile::rotation; empty: not rotated
  // [representations][head_dim]: mean squared error per value, times what an error in the channel
  // does to attention: u_j' A u_j, where A is E[q q'] of the head's queries for K, and the sum over
  // the group's query heads of W_o' W_o for V.
  std::vector<double> errors;
  // A's diagonal: of the channels as they are, without rotation.
  std::vector<double> weights;
};

struct CostOptions {
  BasisKind basis = BasisKind::kDct2;
  int segment_tokens = 256;
  int64_t recent_window = 1024;  // tokens that no segment compresses, with segment 0
  // Rotate by the eigenvectors of E[x x'] (principal components, largest first).
  bool rotate_k = false;
  bool rotate_v = true;
};

// Index as CodecProfile::heads. Encodes every compressed segment of every context in every
// representation with the engine's backend and compares. InvalidArgument for contexts without two
// such segments.
absl::StatusOr<std::vector<HeadCosts>> CollectCosts(
    const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts,
    std::span<const Representation> representations, const CostOptions& options);

}  // namespace fourierkv
