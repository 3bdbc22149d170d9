#include "compute/codec/profile.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "compute/codec/profile_limits.h"
#include "compute/codec/rotation.h"

namespace fourierkv {
namespace {

using profile_limits::kMaxBands;
using profile_limits::kMaxCoefficients;

bool IsPrintable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

std::string GeometryText(const KvGeometry& g) {
  return absl::StrCat(g.layers, " layers, ", g.kv_heads, " KV heads, head dimension ", g.head_dim);
}

// What is wrong with the representation of a band of a segment profile, or nothing.
std::string SegmentBandFault(const Band& band, BasisKind basis) {
  if (band.spectral()) {
    const int most = basis == BasisKind::kMean ? 1 : kMaxCoefficients;
    if (band.coefficients > most) {
      return absl::StrCat("coefficients is ", band.coefficients, "; basis ", BasisName(basis),
                          " allows at most ", most);
    }
    if (band.bits != 8 && band.bits != 16) {
      return absl::StrCat("bits is ", band.bits, "; coefficients are stored in 8 or 16 bits");
    }
  } else if (band.bits != 2 && band.bits != 3 && band.bits != 4 && band.bits != 8 &&
             band.bits != 16) {
    return absl::StrCat("bits is ", band.bits, "; it must be 2, 3, 4, 8 or 16");
  }
  return "";
}

// The same for a sequence profile.
std::string SequenceBandFault(const Band& band, const SequenceScope& scope) {
  if (band.spectral()) {
    if (band.coefficients != scope.states()) {
      return absl::StrCat("coefficients is ", band.coefficients, "; ", scope.frequencies,
                          " frequencies have ", scope.states());
    }
    if (band.bits != 16 && band.bits != 32) {
      return absl::StrCat("bits is ", band.bits,
                          "; coefficients of a sequence are stored in 16 or 32 bits");
    }
  } else if (band.bits != 16) {
    return absl::StrCat("bits is ", band.bits, "; resident channels of a sequence have 16");
  }
  return "";
}

// What is wrong with the channels of one band, or nothing.
std::string ChannelFault(const Band& band, int head_dim) {
  if (band.channels.empty()) return "has no channels; leave the band out";
  int previous = -1;
  for (int channel : band.channels) {
    if (channel >= head_dim) {
      return absl::StrCat("channel ", channel, " is not below head_dim = ", head_dim);
    }
    if (channel <= previous) {
      return absl::StrCat("channel ", channel, " stands behind ", previous,
                          "; channels must increase");
    }
    previous = channel;
  }
  return "";
}

// Of a sequence profile.
absl::Status CheckSequenceHead(const HeadProfile& head, const std::string& field) {
  if (!head.rotation.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is rotated; heads of a sequence profile cannot be"));
  }
  for (size_t b = 1; b < head.bands.size(); ++b) {
    if (head.bands[b].spectral() == head.bands[b - 1].spectral()) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, "[", b, "]: a head of a sequence profile has at most one spectral ",
                       "band and one resident band"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckHead(const HeadProfile& head, const std::string& field,
                       const CodecProfile& profile) {
  const int head_dim = profile.geometry.head_dim;
  if (head.bands.size() > kMaxBands) {
    return absl::InvalidArgumentError(absl::StrCat(field, " has ", head.bands.size(),
                                                   " bands; at most ", kMaxBands, " are allowed"));
  }
  if (!head.rotation.empty()) {
    if (auto s = CheckRotation(head.rotation, head_dim); !s.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".", s.message()));
    }
  }
  std::vector<bool> seen(head_dim);
  for (size_t b = 0; b < head.bands.size(); ++b) {
    const Band& band = head.bands[b];
    std::string fault = band.coefficients < 0 ? absl::StrCat("coefficients is ", band.coefficients,
                                                             "; it must not be negative")
                        : profile.sequence    ? SequenceBandFault(band, *profile.sequence)
                                              : SegmentBandFault(band, profile.basis);
    if (fault.empty()) fault = ChannelFault(band, head_dim);
    if (!fault.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(field, "[", b, "]: ", fault));
    }
    if (band.spectral() && b > 0 && !head.bands[b - 1].spectral()) {
      return absl::InvalidArgumentError(absl::StrCat(
          field, "[", b, "]: is spectral behind a resident band; put spectral bands first"));
    }
    for (int channel : band.channels) {
      if (seen[channel]) {
        return absl::InvalidArgumentError(
            absl::StrCat(field, ": channel ", channel, " is in two bands"));
      }
      seen[channel] = true;
    }
  }
  const auto missing = std::find(seen.begin(), seen.end(), false);
  if (missing != seen.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": channel ", missing - seen.begin(), " is in no band"));
  }
  return absl::OkStatus();
}

absl::Status CheckEvidence(const std::map<std::string, std::string>& evidence) {
  using profile_limits::kMaxEvidence;
  using profile_limits::kMaxEvidenceKey;
  using profile_limits::kMaxEvidenceValue;
  if (evidence.size() > kMaxEvidence) {
    return absl::InvalidArgumentError(absl::StrCat(
        "evidence has ", evidence.size(), " entries; at most ", kMaxEvidence, " are allowed"));
  }
  for (const auto& [key, value] : evidence) {
    if (key.empty() || key.size() > kMaxEvidenceKey || !IsPrintable(key)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "evidence: a key is not 1 to ", kMaxEvidenceKey, " printable ASCII characters"));
    }
    if (value.size() > kMaxEvidenceValue || !IsPrintable(value)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "evidence.", key, " must be at most ", kMaxEvidenceValue, " printable ASCII characters"));
    }
  }
  return absl::OkStatus();
}

std::vector<uint16_t> Range(int first, int last) {
  std::vector<uint16_t> channels(last - first);
  std::iota(channels.begin(), channels.end(), static_cast<uint16_t>(first));
  return channels;
}

HeadProfile SplitHead(int head_dim, double spectral_share, int coefficients, int resident_bits) {
  const double share = std::clamp(spectral_share, 0.0, 1.0);
  const int spectral = static_cast<int>(std::lround(share * head_dim));
  HeadProfile head;
  if (spectral > 0) head.bands.push_back({coefficients, 8, Range(0, spectral)});
  if (spectral < head_dim) head.bands.push_back({0, resident_bits, Range(spectral, head_dim)});
  return head;
}

}  // namespace

absl::Status CodecProfile::Validate() const {
  if (name.empty() || name.size() > profile_limits::kMaxName || !IsPrintable(name)) {
    return absl::InvalidArgumentError(absl::StrCat("name must be 1 to ", profile_limits::kMaxName,
                                                   " printable ASCII characters"));
  }
  if (auto s = geometry.Validate(); !s.ok()) return s;
  if (auto known = ParseBasisKind(BasisName(basis)); !known.ok()) return known.status();
  if (sequence) {
    if (auto s = sequence->Validate(); !s.ok()) return s;
    if (segment_tokens != 0) {
      return absl::InvalidArgumentError(absl::StrCat("segment_tokens is ", segment_tokens,
                                                     "; it must be 0 where `sequence` is given"));
    }
    if (basis != BasisKind::kDft) {
      return absl::InvalidArgumentError(absl::StrCat("basis is ", BasisName(basis),
                                                     "; it must be dft where `sequence` is given"));
    }
  } else if (segment_tokens != 128 && segment_tokens != 256 && segment_tokens != 512 &&
             segment_tokens != 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment_tokens is ", segment_tokens, "; it must be 128, 256, 512 or 1024"));
  }
  if (auto s = CheckEvidence(evidence); !s.ok()) return s;
  const size_t expected = size_t{2} * geometry.layers * geometry.kv_heads;
  if (heads.size() != expected) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layers hold ", heads.size(), " heads; the geometry needs ", expected, " (K and V)"));
  }
  if (archive) {
    if (segment_tokens == 0) {
      return absl::InvalidArgumentError("archive: a profile with `sequence` has no segments");
    }
    if (auto s = archive->Validate(geometry); !s.ok()) return s;
  }
  for (int layer = 0; layer < geometry.layers; ++layer) {
    for (Part part : kParts) {
      for (int h = 0; h < geometry.kv_heads; ++h) {
        const std::string field =
            absl::StrCat("layers[", layer, "].", part == Part::kK ? "k" : "v", "[", h, "]");
        if (auto s = CheckHead(head(layer, h, part), field, *this); !s.ok()) return s;
        if (!sequence) continue;
        if (auto s = CheckSequenceHead(head(layer, h, part), field); !s.ok()) return s;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CodecProfile::CheckFits(const KvGeometry& model) const {
  if (geometry == model) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("profile '", name, "' is for ", GeometryText(geometry), "; the model has ",
                   GeometryText(model), ". Calibrate a profile for this model."));
}

// Which channels survive as a few coefficients depends on the model's weights, and a wrong guess
// costs recall, so nothing is spectral here: 4 bits per channel and token, 3.9 times smaller, the
// mildest compact form. `fourierkv profile calibrate` chooses spectral channels from data.
CodecProfile DefaultProfile(const KvGeometry& geometry) {
  CodecProfile profile = UniformProfile(geometry, 0, 0, 1, 4);
  profile.name = "default-int4";
  return profile;
}

CodecProfile UniformProfile(const KvGeometry& geometry, double k_spectral, double v_spectral,
                            int coefficients, int resident_bits) {
  const HeadProfile k = SplitHead(geometry.head_dim, k_spectral, coefficients, resident_bits);
  const HeadProfile v = SplitHead(geometry.head_dim, v_spectral, coefficients, resident_bits);
  CodecProfile profile;
  profile.name =
      absl::StrCat("uniform-k", std::lround(100 * k_spectral), "-v", std::lround(100 * v_spectral),
                   "-m", coefficients, "-r", resident_bits);
  profile.geometry = geometry;
  for (int i = 0; i < geometry.layers * geometry.kv_heads; ++i) {
    profile.heads.push_back(k);
    profile.heads.push_back(v);
  }
  return profile;
}

}  // namespace fourierkv
