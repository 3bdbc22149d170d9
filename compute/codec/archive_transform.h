// The transform of an archived head: channels scaled and rotated, DCT along time. In float32, for
// speed; reference_archive.h is the same in float64.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compute/codec/archive_profile.h"

namespace fourierkv {

// cos and sin of position * frequency for consecutive positions: [tokens][D/2] each.
struct RopeTable {
  std::vector<float> cos;
  std::vector<float> sin;
};

// Makes tables for segments at any position out of one for the positions 0 to `tokens` - 1: only
// the angles of a segment's first token need trigonometry. Immutable.
class RopeTables {
 public:
  // `frequencies` in radians per token.
  RopeTables(std::vector<double> frequencies, int tokens);

  RopeTable At(int64_t first_token) const;

 private:
  std::vector<double> frequencies_;
  RopeTable base_;
};

// The orthonormal DCT-II of kArchiveBlock values: [frequency][token].
std::span<const float> ArchiveDct();

// K or V of one head. Immutable.
class ArchiveTransform {
 public:
  // `rotation`: U [D][D] of the head, or of its compact form, or empty for the identity.
  ArchiveTransform(const ArchiveHead& head, std::span<const int16_t> rotation);

  // x [tokens][D], K before RoPE; y [D][tokens]: for every channel its blocks, each with its 64
  // frequencies, in units of the channel's step.
  void Forward(int tokens, const float* x, float* y) const;

  // x [tokens][D] from integers q [D][tokens].
  void Inverse(int tokens, const int16_t* q, float* x) const;

  // The same values in the rotated channels, x U: without the product that takes most of Inverse's
  // time. Requires a head without scales.
  void InverseRotated(int tokens, const int16_t* q, float* x) const;

  // ||x - x^||^2 where y came from x, and x^ comes from q.
  double SquaredError(int tokens, const float* y, const int16_t* q) const;

  bool scaled() const { return scaled_; }
  int head_dim() const { return static_cast<int>(mean_.size()); }
  // The row that channel j adds to x for every unit of y; `mean` is added to that.
  const float* inverse_row(int j) const {
    return inverse_.data() + static_cast<int64_t>(j) * head_dim();
  }
  std::span<const float> mean() const { return mean_; }

 private:
  bool scaled_;
  std::vector<float> mean_;     // [D]
  std::vector<float> shift_;    // [D]: what mean_ adds to frequency 0 of every block of y
  std::vector<float> step_;     // [D]
  std::vector<float> forward_;  // [D][D]: scale U / step
  std::vector<float> inverse_;  // [D][D]: step U^T / scale
};

}  // namespace fourierkv
