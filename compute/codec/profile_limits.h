// Bounds of codec profiles that the validator and the JSON reader share.

#pragma once

#include <cstddef>

namespace fourierkv::profile_limits {

inline constexpr size_t kMaxTextBytes = size_t{64} << 20;
inline constexpr int kMaxLayers = 512;
inline constexpr int kMaxHeads = 256;
inline constexpr int kMaxHeadDim = 512;
inline constexpr int kMaxBands = 12;
inline constexpr int kMaxCoefficients = 64;
inline constexpr int kMaxSequenceStates = 2 * 4096;
inline constexpr size_t kMaxName = 128;
inline constexpr size_t kMaxEvidence = 32;
inline constexpr size_t kMaxEvidenceKey = 64;
inline constexpr size_t kMaxEvidenceValue = 256;

}  // namespace fourierkv::profile_limits
