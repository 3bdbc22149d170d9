// Chooses which channels of a model are spectral, by what their loss does to attention.

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

// Over what the shares of CalibrationOptions hold: within it, channels compete by the harm their
// loss does.
enum class ChannelPool { kHead, kLayer, kModel };

struct CalibrationOptions {
  std::string name;
  double k_spectral = 0.7;  // share of a pool's channels, 0 to 1
  double v_spectral = 0.5;
  BasisKind basis = BasisKind::kDct2;
  int coefficients = 8;  // per spectral channel and segment; 1 for basis `mean`
  int resident_bits = 4;
  // Share of a pool's channels that are resident in 8 bits: the most harmful ones. The rest of the
  // resident channels take resident_bits.
  double k_precise = 0;
  double v_precise = 0;
  int segment_tokens = 256;
  ChannelPool pool = ChannelPool::kModel;
};

// Runs `tokens` through the model and scores every channel d of K and V of every KV head:
//   K: (energy lost by keeping only the first M coefficients per segment) * E[q_d^2]
//   V: the same * the squared norm of the rows of W_o that read d, summed over query heads
// over all whole segments but the first. The least harmful become spectral. Deterministic but for
// float rounding.
//
// InvalidArgument for options out of bounds, bad tokens, or fewer than three whole segments of
// them.
absl::StatusOr<CodecProfile> Calibrate(std::shared_ptr<const LlamaModel> model,
                                       std::shared_ptr<ThreadPool> pool, ComputeBackend* backend,
                                       std::span<const int32_t> tokens,
                                       const CalibrationOptions& options);

}  // namespace fourierkv
