// A profile as FourierAttention's authors choose theirs, for a model without published lists.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/profile.h"
#include "compute/model/llama_model.h"

namespace fourierkv {

struct FaithfulOptions {
  std::string name;
  SequenceScope scope = {};   // the published one
  int coefficient_bits = 16;  // 16 or 32
};

// The published shares of spectral channels of layer `layer` of `layers`: the first eighth of the
// layers K 90%, V 95%; the last quarter K 50%, V 70%; the others 80%. (Of 32 layers, 4 and 8.)
double FaithfulShare(int layer, int layers, Part part);

// Computes K and V of `tokens`, encodes every channel of their middle, and makes spectral, in each
// layer, the channels of the least mean squared error: FaithfulShare of them, rounded down. Heads
// compete within a layer. K is compared after RoPE, as it is cached.
//
// InvalidArgument for bad tokens or fewer than sink, recent tokens and states together need.
absl::StatusOr<CodecProfile> FaithfulProfile(std::shared_ptr<const LlamaModel> model,
                                             std::shared_ptr<ThreadPool> pool,
                                             ComputeBackend* backend,
                                             std::span<const int32_t> tokens,
                                             const FaithfulOptions& options);

}  // namespace fourierkv
