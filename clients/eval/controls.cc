#include "clients/eval/controls.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/symmetric_eigen.h"
#include "compute/codec/rotation.h"

namespace fourierkv {
namespace {

size_t HeadCount(const KvGeometry& g) { return static_cast<size_t>(g.layers) * g.kv_heads * 2; }

// Per head of the model: how much harm each direction does when only its mean is kept, and the
// rotation to these directions, if any.
struct Directions {
  std::vector<std::vector<double>> harm;       // [heads][head_dim]
  std::vector<std::vector<int16_t>> rotation;  // [heads]
};

// Payload bits per element of one part.
double BitsOfPart(const ProfileLayout& layout, Part part) {
  const CodecProfile& profile = layout.profile();
  int64_t bytes = 0;
  for (int l = 0; l < profile.geometry.layers; ++l) bytes += layout.part(l, part).payload_bytes;
  return 8.0 * kKvDtypeBytes * static_cast<double>(bytes) /
         static_cast<double>(profile.geometry.layers *
                             profile.geometry.PartBytes(profile.segment_tokens));
}

// Heads of `part`, of whose directions in all the `means` least harmful ones keep only their mean.
void Split(const Directions& directions, Part part, size_t means, int resident_bits,
           CodecProfile* profile) {
  struct Place {
    double harm;
    size_t head;
    uint16_t channel;
  };
  std::vector<Place> places;
  for (size_t head = static_cast<size_t>(part); head < profile->heads.size(); head += 2) {
    for (size_t c = 0; c < directions.harm[head].size(); ++c) {
      places.push_back({directions.harm[head][c], head, static_cast<uint16_t>(c)});
    }
    profile->heads[head].bands = {{1, 8, {}}, {0, resident_bits, {}}};
  }
  std::stable_sort(places.begin(), places.end(),
                   [](const Place& a, const Place& b) { return a.harm < b.harm; });
  for (size_t i = 0; i < places.size(); ++i) {
    profile->heads[places[i].head].bands[i < means ? 0 : 1].channels.push_back(places[i].channel);
  }
  for (size_t head = static_cast<size_t>(part); head < profile->heads.size(); head += 2) {
    std::vector<Band>& bands = profile->heads[head].bands;
    std::erase_if(bands, [](const Band& band) { return band.channels.empty(); });
    for (Band& band : bands) std::sort(band.channels.begin(), band.channels.end());
  }
}

absl::StatusOr<CodecProfile> MeansAndResidents(const ChannelStatistics& statistics,
                                               Directions directions, const PartBits& target,
                                               std::string name, int resident_bits) {
  CodecProfile profile;
  profile.name = std::move(name);
  profile.geometry = statistics.geometry;
  profile.basis = BasisKind::kMean;
  profile.segment_tokens = statistics.options.segment_tokens;
  profile.heads.resize(HeadCount(profile.geometry));
  const size_t all = profile.heads.size() / 2 * profile.geometry.head_dim;
  for (const Part part : kParts) Split(directions, part, all, resident_bits, &profile);
  for (const Part part : kParts) {
    const double room = part == Part::kK ? target.k : target.v;
    // The fewest means that fit, by bisection: more means take less room.
    size_t fits = all, too_few = 0;
    while (fits - too_few > 1) {
      const size_t means = too_few + (fits - too_few) / 2;
      Split(directions, part, means, resident_bits, &profile);
      const bool small = BitsOfPart(ProfileLayout(profile), part) <= room;
      (small ? fits : too_few) = means;
    }
    Split(directions, part, fits, resident_bits, &profile);
  }
  for (size_t i = 0; i < profile.heads.size() && !directions.rotation.empty(); ++i) {
    profile.heads[i].rotation = std::move(directions.rotation[i]);
  }
  if (absl::Status s = profile.Validate(); !s.ok()) return s;
  return profile;
}

absl::Status CheckStatistics(const ChannelStatistics& statistics) {
  if (statistics.options.coefficients.empty() || statistics.options.coefficients[0] != 1 ||
      statistics.heads.size() != HeadCount(statistics.geometry)) {
    return absl::InvalidArgumentError(
        "controls need statistics of what is left when one coefficient is kept");
  }
  return absl::OkStatus();
}

}  // namespace

PartBits BitsOf(const ProfileLayout& layout) {
  return {BitsOfPart(layout, Part::kK), BitsOfPart(layout, Part::kV)};
}

CodecProfile UniformControl(const KvGeometry& geometry, int segment_tokens, int bits) {
  CodecProfile profile;
  profile.name = absl::StrCat("int", bits, " per channel");
  profile.geometry = geometry;
  profile.segment_tokens = segment_tokens;
  Band all = {0, bits, std::vector<uint16_t>(geometry.head_dim)};
  std::iota(all.channels.begin(), all.channels.end(), uint16_t{0});
  profile.heads.assign(HeadCount(geometry), HeadProfile{{all}});
  return profile;
}

absl::StatusOr<CodecProfile> MeanOnlyControl(const ChannelStatistics& statistics,
                                             const PartBits& target, int resident_bits) {
  if (absl::Status s = CheckStatistics(statistics); !s.ok()) return s;
  Directions directions;
  for (const HeadStatistics& head : statistics.heads) {
    const int dim = statistics.geometry.head_dim;
    std::vector<double> harm;
    for (int d = 0; d < dim; ++d) {
      const size_t diagonal = static_cast<size_t>(d) * (dim + 1);
      harm.push_back(head.residual[0][diagonal] * head.sensitivity[diagonal]);
    }
    directions.harm.push_back(std::move(harm));
  }
  return MeansAndResidents(statistics, std::move(directions), target,
                           absl::StrCat("mean-only, int", resident_bits), resident_bits);
}

absl::StatusOr<CodecProfile> PcaControl(const ChannelStatistics& statistics, const PartBits& target,
                                        int resident_bits) {
  if (absl::Status s = CheckStatistics(statistics); !s.ok()) return s;
  const int dim = statistics.geometry.head_dim;
  Directions directions;
  for (const HeadStatistics& head : statistics.heads) {
    absl::StatusOr<SymmetricEigen> eigen = EigenOfSymmetric(head.residual[0], dim);
    if (!eigen.ok()) return eigen.status();
    std::vector<double> harm;
    for (int j = 0; j < dim; ++j) {
      std::vector<double> u(dim);
      for (int i = 0; i < dim; ++i) u[i] = eigen->vectors[static_cast<size_t>(i) * dim + j];
      harm.push_back(eigen->values[j] * Along(head.sensitivity, u));
    }
    directions.harm.push_back(std::move(harm));
    directions.rotation.push_back(QuantizeRotation(std::span<const double>(eigen->vectors)));
  }
  return MeansAndResidents(statistics, std::move(directions), target,
                           absl::StrCat("channel PCA, int", resident_bits), resident_bits);
}

}  // namespace fourierkv
