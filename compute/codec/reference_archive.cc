#include "compute/codec/reference_archive.h"

#include <cmath>

#include "compute/base/bfloat16.h"
#include "compute/codec/basis.h"
#include "compute/codec/rotation.h"

namespace fourierkv::reference {
namespace {

// The constants of one head.
struct Head {
  Head(const CodecProfile& profile, int layer, int h, Part part)
      : of(profile.archive->head(profile.geometry, layer, h, part)),
        rotation(of.rotation.empty() ? profile.head(layer, h, part).rotation : of.rotation),
        n(profile.geometry.head_dim) {}

  double u(int d, int j) const {
    if (rotation.empty()) return d == j ? 1 : 0;
    return rotation[static_cast<size_t>(d) * n + j] / 32767.0;
  }
  double mean(int d) const { return Bf16ToFloat(of.mean[d]); }
  double scale(int d) const { return of.scale.empty() ? 1 : Bf16ToFloat(of.scale[d]); }
  double step(int j) const { return Bf16ToFloat(of.step[j]); }

  const ArchiveHead& of;
  const std::vector<int16_t>& rotation;
  int n;
};

double Dct(int frequency, int t) {
  return BasisValue(BasisKind::kDct2, kArchiveBlock, frequency, t);
}

// Turns a token x [D] by `sign` times its position's angles.
void Turn(const std::vector<double>& frequencies, int64_t position, int sign, double* x) {
  const size_t half = frequencies.size();
  for (size_t d = 0; d < half; ++d) {
    const double angle = sign * static_cast<double>(position) * frequencies[d];
    const double a = x[d];
    const double b = x[d + half];
    x[d] = a * std::cos(angle) - b * std::sin(angle);
    x[d + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

}  // namespace

int ArchiveRound(double y, int rounding) {
  const double magnitude = std::floor(std::fabs(y) + rounding / 256.0);
  return static_cast<int>(y < 0 ? -magnitude : magnitude);
}

std::vector<double> ArchiveForward(const CodecProfile& profile, int layer, Part part, KvDtype dtype,
                                   int64_t first_token, std::span<const uint16_t> dense) {
  const int n = profile.geometry.head_dim;
  const int tokens = profile.segment_tokens;
  std::vector<double> y(dense.size());
  for (int h = 0; h < profile.geometry.kv_heads; ++h) {
    const Head head(profile, layer, h, part);
    const size_t offset = static_cast<size_t>(h) * tokens * n;
    std::vector<double> x(n);
    for (int t = 0; t < tokens; ++t) {
      for (int d = 0; d < n; ++d) {
        x[d] = KvToFloat(dense[offset + static_cast<size_t>(t) * n + d], dtype);
      }
      if (part == Part::kK) Turn(profile.archive->rope_frequencies, first_token + t, -1, x.data());
      const int block = t / kArchiveBlock * kArchiveBlock;
      for (int j = 0; j < n; ++j) {
        double rotated = 0;
        for (int d = 0; d < n; ++d) rotated += (x[d] - head.mean(d)) * head.scale(d) * head.u(d, j);
        rotated /= head.step(j);
        double* const to = y.data() + offset + static_cast<size_t>(j) * tokens + block;
        for (int f = 0; f < kArchiveBlock; ++f) to[f] += Dct(f, t - block) * rotated;
      }
    }
  }
  return y;
}

std::vector<double> ArchiveInverse(const CodecProfile& profile, int layer, Part part,
                                   int64_t first_token, std::span<const int16_t> q) {
  const int n = profile.geometry.head_dim;
  const int tokens = profile.segment_tokens;
  std::vector<double> values(q.size());
  for (int h = 0; h < profile.geometry.kv_heads; ++h) {
    const Head head(profile, layer, h, part);
    const size_t offset = static_cast<size_t>(h) * tokens * n;
    for (int t = 0; t < tokens; ++t) {
      const int block = t / kArchiveBlock * kArchiveBlock;
      double* const x = values.data() + offset + static_cast<size_t>(t) * n;
      for (int j = 0; j < n; ++j) {
        const int16_t* from = q.data() + offset + static_cast<size_t>(j) * tokens + block;
        double rotated = 0;
        for (int f = 0; f < kArchiveBlock; ++f) rotated += Dct(f, t - block) * from[f];
        rotated *= head.step(j);
        for (int d = 0; d < n; ++d) x[d] += rotated * head.u(d, j) / head.scale(d);
      }
      for (int d = 0; d < n; ++d) x[d] += head.mean(d);
      if (part == Part::kK) Turn(profile.archive->rope_frequencies, first_token + t, 1, x);
    }
  }
  return values;
}

}  // namespace fourierkv::reference
