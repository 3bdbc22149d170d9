// Codec profile: how every channel of every head of a model is represented in a compact segment.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/base/content_hash.h"
#include "compute/base/geometry.h"
#include "compute/codec/archive_profile.h"
#include "compute/codec/basis.h"
#include "compute/codec/sequence_scope.h"

namespace fourierkv {

// Channels of one head that share one representation.
//   spectral: `coefficients` = M basis coefficients per channel and segment, `bits` in {8, 16}
//   resident: one value per token, `bits` in {2, 3, 4, 8, 16}; `coefficients` = 0
// 16 bits is bf16; fewer are integers with one bf16 scale (and offset) per channel and segment.
struct Band {
  int coefficients = 0;
  int bits = 0;
  std::vector<uint16_t> channels;  // increasing, each in [0, head_dim)

  bool spectral() const { return coefficients > 0; }
  bool operator==(const Band&) const = default;
};

// K or V of one head: bands that together hold every channel exactly once, spectral bands first.
struct HeadProfile {
  std::vector<Band> bands;
  // Empty, or an orthogonal matrix U, row-major [head_dim][head_dim], in units of 1 / 32767. Then
  // what is compressed is X U, and "channel" j means its column j (rotation.h).
  std::vector<int16_t> rotation = {};
  bool operator==(const HeadProfile&) const = default;
};

// Immutable once validated. Identified by the SHA-256 of its canonical JSON form (docs/format.md).
struct CodecProfile {
  std::string name;
  KvGeometry geometry;
  BasisKind basis = BasisKind::kDct2;
  int segment_tokens = 256;
  std::vector<HeadProfile> heads;  // index: (layer * kv_heads + head) * 2 + part
  // What speaks for the profile, for people and reports: "model_sha256", "predicted_error", ...
  std::map<std::string, std::string> evidence;
  // Present if spectral channels span the whole sequence. Then segment_tokens is 0, the basis is
  // `dft`, no head is rotated, and a head has at most one spectral band (M = sequence->states(), 16
  // or 32 bits: bf16 or float) and one resident band (16 bits).
  std::optional<SequenceScope> sequence = {};
  // How segments are archived; without it, none are.
  std::optional<ArchiveProfile> archive = {};

  const HeadProfile& head(int layer, int head, Part part) const {
    return heads[(static_cast<size_t>(layer) * geometry.kv_heads + head) * 2 +
                 static_cast<size_t>(part)];
  }
  HeadProfile& head(int layer, int head, Part part) {
    return heads[(static_cast<size_t>(layer) * geometry.kv_heads + head) * 2 +
                 static_cast<size_t>(part)];
  }

  bool operator==(const CodecProfile&) const = default;

  // InvalidArgument naming the field at fault, e.g. "layers[3].k[1]: channel 17 is in two bands".
  // Bounds: segment_tokens in {128, 256, 512, 1024}; 1 <= M <= 64, M = 1 for basis `mean`;
  // at most 12 bands a head; rotations orthogonal (CheckRotation); name of 1 to 128 printable
  // characters; at most 32 pieces of evidence, keys of 1 to 64 and values of at most 256 printable
  // characters. With `sequence`, the bounds stated there instead of those on segments and bands.
  absl::Status Validate() const;

  // InvalidArgument unless the profile was made for `model`, saying both geometries.
  absl::Status CheckFits(const KvGeometry& model) const;

  // Canonical JSON: one line, keys sorted, no spaces. Equal profiles give equal text.
  std::string ToJson() const;
  // The same for people: two-space indentation, one line per head.
  std::string ToPrettyJson() const;
  Digest Id() const;

  // Parses and validates. `text` is at most 64 MiB. Unknown keys are refused.
  static absl::StatusOr<CodecProfile> FromJson(absl::string_view text);
  static absl::StatusOr<CodecProfile> FromFile(const std::string& path);
};

// A profile for a model nobody has calibrated yet; `geometry` must be valid.
CodecProfile DefaultProfile(const KvGeometry& geometry);

// Every head alike: the first `k_spectral` (of 1.0) channels of K and `v_spectral` of V spectral
// with M coefficients, the others resident at `resident_bits`. For benchmarks and tests.
CodecProfile UniformProfile(const KvGeometry& geometry, double k_spectral, double v_spectral,
                            int coefficients, int resident_bits);

}  // namespace fourierkv
