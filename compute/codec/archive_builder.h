// Makes the archive section of a profile from measurements of a model's KV.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/codec/archive_profile.h"
#include "compute/codec/profile.h"

namespace fourierkv {

// What was measured of K (before RoPE) or V of one head.
struct ArchiveHeadStatistics {
  std::vector<double> mean;           // [D]: E[x_d]
  std::vector<double> second_moment;  // [D][D]: E[x_d x_e], not centred
  // [D]: what an error of 1 in channel d costs, squared: s * w_d, positive. For K, channels d and
  // d + D/2 turn together, so both get the mean of their two.
  std::vector<double> sensitivity;
};

struct ArchiveStatistics {
  std::vector<double> rope_frequencies;      // [D/2], Rope::frequencies()
  std::vector<ArchiveHeadStatistics> heads;  // index: (layer * kv_heads + head) * 2 + part
};

// One segment of one part as a cache holds it, K after RoPE: what the entropy model learns from.
struct ArchiveSample {
  int layer = 0;
  Part part = Part::kK;
  KvDtype dtype = KvDtype::kBf16;
  int64_t first_token = 0;
  std::vector<uint16_t> dense;  // [kv_heads][S][head_dim]
};

struct ArchiveOptions {
  // The common step where every channel is scaled by sqrt(sensitivity): the one knob between bytes
  // and quality. Rounding to the nearest integer costs step^2 / 12 per value at most.
  double step = 1;
  int rounding = 100;  // ArchiveProfile::rounding
  // V takes the rotation of its compact form where that has one, so that transcoding is cheapest
  // and the profile smaller.
  bool share_v_rotation = false;
};

// The section for `profile`, which must be valid; its own archive section is ignored. K:
// sensitivity scaling, then principal components. V: principal components, steps by sensitivity.
// Samples, best a few dozen segments of every layer that the statistics did not see, give classes
// and probabilities. InvalidArgument for sizes that do not fit the profile's geometry, values that
// are not finite, sensitivities or a step that are not positive, or a layer and part without
// samples.
absl::StatusOr<ArchiveProfile> BuildArchive(const CodecProfile& profile,
                                            const ArchiveStatistics& statistics,
                                            const ArchiveOptions& options,
                                            std::span<const ArchiveSample> samples);

}  // namespace fourierkv
