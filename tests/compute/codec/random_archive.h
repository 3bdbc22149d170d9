// Random archive sections for property tests.

#pragma once

#include <cmath>
#include <random>

#include "compute/codec/archive_symbols.h"
#include "compute/codec/range_coder.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {

// Steps of a few times the values' size, so that integers are small; some heads without rotation or
// scale of their own.
inline ArchiveProfile RandomArchive(std::mt19937_64& rng, const KvGeometry& geometry) {
  std::uniform_real_distribution<double> unit(0, 1);
  ArchiveProfile archive;
  for (int d = 0; d < geometry.head_dim / 2; ++d) {
    archive.rope_frequencies.push_back(std::pow(10000.0, -2.0 * d / geometry.head_dim));
  }
  archive.rounding = RandomInt(rng, 1, 128);
  for (int i = 0; i < 2 * kArchiveContexts; ++i) {
    archive.probabilities.push_back(
        static_cast<uint16_t>(RandomInt(rng, AdaptiveBit::kLow, AdaptiveBit::kHigh)));
  }
  for (int i = 0; i < 2 * geometry.layers * geometry.kv_heads; ++i) {
    ArchiveHead& head = archive.heads.emplace_back();
    if (RandomInt(rng, 0, 2) > 0) head.rotation = RandomRotation(rng, geometry.head_dim);
    const bool scaled = RandomInt(rng, 0, 1) > 0;
    for (int d = 0; d < geometry.head_dim; ++d) {
      head.mean.push_back(FloatToBf16(static_cast<float>(8 * unit(rng) - 4)));
      head.step.push_back(FloatToBf16(static_cast<float>(std::exp2(4 * unit(rng) - 1))));
      if (scaled) head.scale.push_back(FloatToBf16(static_cast<float>(std::exp2(unit(rng) - 1))));
      for (int o = 0; o < kArchiveOctaves; ++o) {
        head.classes.push_back(static_cast<uint8_t>(RandomInt(rng, 0, kArchiveClasses - 1)));
      }
    }
  }
  return archive;
}

inline CodecProfile RandomArchivingProfile(std::mt19937_64& rng) {
  CodecProfile profile = RandomProfile(rng);
  profile.archive = RandomArchive(rng, profile.geometry);
  return profile;
}

}  // namespace fourierkv
