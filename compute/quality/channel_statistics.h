// What a model's K and V look like on a text, and how sensitive attention is to each direction of
// them: all that a choice of codec profile needs to know.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/geometry.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/basis.h"
#include "compute/model/llama_model.h"

namespace fourierkv {

// A symmetric matrix [head_dim][head_dim]. For a direction u of unit length, u^T A u is what A says
// about the channel that a rotation with column u would have; the diagonal is about the channels as
// they are.
using Moment = std::vector<double>;

// u^T A u.
double Along(const Moment& a, std::span<const double> u);

// K (after RoPE) or V of one KV head.
struct HeadStatistics {
  Moment energy;  // E[x x^T] over tokens
  // residual[i] = E[r r^T], where r is what is left of x when the first coefficients[i] basis
  // coefficients of its segment are taken away: what spectral channels lose.
  std::vector<Moment> residual;
  // How an error e in x hurts. K: E[q q^T] summed over the query heads of the group, so that the
  // scores' squared error before scaling is e^T A e. V: the sum of W_o,h^T W_o,h over them, so that
  // e^T A e is the layer output's squared error where attention gives the token weight one.
  Moment sensitivity;
};

struct StatisticsOptions {
  BasisKind basis = BasisKind::kDct2;
  int segment_tokens = 256;
  std::vector<int> coefficients = {1, 2, 4, 8, 16};  // increasing, each 1 to segment_tokens
};

struct ChannelStatistics {
  KvGeometry geometry;
  StatisticsOptions options;
  int64_t tokens = 0;                 // that were averaged over
  std::vector<HeadStatistics> heads;  // index: (layer * kv_heads + head) * 2 + part

  const HeadStatistics& head(int layer, int head, Part part) const {
    return heads[(static_cast<size_t>(layer) * geometry.kv_heads + head) * 2 +
                 static_cast<size_t>(part)];
  }
};

// Runs `tokens` through the model and averages over all whole segments but the first, which no
// profile compresses. Deterministic but for float rounding. InvalidArgument for options out of
// bounds, bad tokens, or fewer than three whole segments of them.
absl::StatusOr<ChannelStatistics> CollectStatistics(std::shared_ptr<const LlamaModel> model,
                                                    std::shared_ptr<ThreadPool> pool,
                                                    ComputeBackend* backend,
                                                    std::span<const int32_t> tokens,
                                                    const StatisticsOptions& options = {});

}  // namespace fourierkv
