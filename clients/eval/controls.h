// Profiles that a good profile must beat at equal bytes.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/codec/profile.h"
#include "compute/codec/segment_layout.h"
#include "compute/quality/channel_statistics.h"

namespace fourierkv {

// Payload bits per element of K and of V, all layers.
struct PartBits {
  double k = 0;
  double v = 0;
};

PartBits BitsOf(const ProfileLayout& layout);

// Every channel of every head resident in `bits`, one scale and offset per channel and segment: the
// layout of KIVI (arXiv 2402.02750) for K, used for V too.
CodecProfile UniformControl(const KvGeometry& geometry, int segment_tokens, int bits);

// The directions whose loss harms attention most are resident in `resident_bits`; of the others
// only the mean of each segment is kept. As many are resident as `target` has room for, K and V
// each, over all layers: at most as many bytes as a profile of that size, unless means alone take
// more.
//
//   mean-only: directions are the channels as they are. What the Fourier coefficients must beat.
//   PCA: those of each head's covariance within segments. What a transform across channels does
//        without one along time (KVTC, arXiv 2511.01815, without its entropy coding).
//
// `statistics` must have been collected with coefficients[0] = 1 and say the segments' length.
absl::StatusOr<CodecProfile> MeanOnlyControl(const ChannelStatistics& statistics,
                                             const PartBits& target, int resident_bits);
absl::StatusOr<CodecProfile> PcaControl(const ChannelStatistics& statistics, const PartBits& target,
                                        int resident_bits);

}  // namespace fourierkv
