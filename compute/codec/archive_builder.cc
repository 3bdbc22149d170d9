#include "compute/codec/archive_builder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "compute/base/symmetric_eigen.h"
#include "compute/codec/archive_codec.h"
#include "compute/codec/archive_kernels.h"
#include "compute/codec/archive_symbols.h"
#include "compute/codec/range_coder.h"
#include "compute/codec/rotation.h"

namespace fourierkv {
namespace {

// Class c expects magnitudes around kWeakest * 2^(c / kClassesPerDoubling) steps.
constexpr double kWeakest = 0.06;
constexpr double kClassesPerDoubling = 3;

// bf16 within the bounds of scales and steps.
uint16_t BoundedBf16(double value) {
  return FloatToBf16(static_cast<float>(std::clamp(value, 0x1p-20, 0x1p20)));
}

bool AllFinite(std::span<const double> values) {
  return std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
}

absl::Status CheckHead(const ArchiveHeadStatistics& head, const std::string& field, size_t n) {
  const auto error = [&field](const auto&... text) {
    return absl::InvalidArgumentError(absl::StrCat(field, text...));
  };
  if (head.mean.size() != n || head.sensitivity.size() != n || head.second_moment.size() != n * n) {
    return error(" must have ", n, " means, ", n, " sensitivities and ", n * n, " second moments");
  }
  if (!AllFinite(head.mean) || !AllFinite(head.second_moment) || !AllFinite(head.sensitivity)) {
    return error(" has values that are not finite");
  }
  for (size_t d = 0; d < n; ++d) {
    if (std::fabs(head.mean[d]) > 0x1p20) return error(".mean[", d, "] is beyond 2^20");
    if (head.sensitivity[d] <= 0) return error(".sensitivity[", d, "] is not positive");
  }
  return absl::OkStatus();
}

absl::Status CheckInput(const CodecProfile& profile, const ArchiveStatistics& statistics,
                        const ArchiveOptions& options, std::span<const ArchiveSample> samples) {
  const KvGeometry& g = profile.geometry;
  if (profile.segment_tokens <= 0) {
    return absl::InvalidArgumentError("a profile with `sequence` has no segments to archive");
  }
  if (!(options.step > 0) || !std::isfinite(options.step)) {
    return absl::InvalidArgumentError(
        absl::StrCat("step is ", options.step, "; it must be positive"));
  }
  if (statistics.heads.size() != profile.heads.size()) {
    return absl::InvalidArgumentError(absl::StrCat("statistics are of ", statistics.heads.size(),
                                                   " heads; the profile has ", profile.heads.size(),
                                                   " (K and V)"));
  }
  for (size_t i = 0; i < statistics.heads.size(); ++i) {
    const absl::Status status =
        CheckHead(statistics.heads[i], absl::StrCat("statistics.heads[", i, "]"), g.head_dim);
    if (!status.ok()) return status;
  }
  std::vector<bool> sampled(static_cast<size_t>(g.layers) * 2);
  for (const ArchiveSample& sample : samples) {
    if (sample.layer < 0 || sample.layer >= g.layers) {
      return absl::InvalidArgumentError(absl::StrCat("a sample is of layer ", sample.layer,
                                                     "; the profile has ", g.layers, " layers"));
    }
    sampled[sample.layer * 2 + static_cast<int>(sample.part)] = true;
  }
  const auto missing = std::find(sampled.begin(), sampled.end(), false);
  if (missing == sampled.end()) return absl::OkStatus();
  const auto index = missing - sampled.begin();
  return absl::InvalidArgumentError(
      absl::StrCat("there is no sample of ", index % 2 == 0 ? "K" : "V", " of layer ", index / 2));
}

// U [D][D] as float64, the identity if there is none.
std::vector<double> RotationMatrix(std::span<const int16_t> rotation, size_t n) {
  std::vector<double> u(n * n);
  for (size_t d = 0; d < n; ++d) {
    if (rotation.empty()) u[d * n + d] = 1;
    for (size_t j = 0; j < n && !rotation.empty(); ++j) {
      u[d * n + j] = RotationEntry(rotation[d * n + j]);
    }
  }
  return u;
}

// Scaled so that errors count alike in all channels; then principal components, one step for all.
// (Principal components first and a step for each costs K 6 to 8% more bytes.)
absl::Status SetScaled(const ArchiveHeadStatistics& of, double step, ArchiveHead* head) {
  const size_t n = of.mean.size();
  const double mean =
      std::accumulate(of.sensitivity.begin(), of.sensitivity.end(), 0.0) / static_cast<double>(n);
  std::vector<double> scale(n);
  for (size_t d = 0; d < n; ++d) {
    // Relative to the head's mean, so that scales stay near 1 whatever the unit of sensitivity.
    head->scale.push_back(BoundedBf16(std::sqrt(of.sensitivity[d] / mean)));
    scale[d] = Bf16ToFloat(head->scale[d]);
  }
  std::vector<double> covariance(n * n);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      covariance[i * n + j] =
          scale[i] * scale[j] * (of.second_moment[i * n + j] - of.mean[i] * of.mean[j]);
    }
  }
  const absl::StatusOr<SymmetricEigen> eigen = EigenOfSymmetric(covariance, static_cast<int>(n));
  if (!eigen.ok()) return eigen.status();
  head->rotation = QuantizeRotation(eigen->vectors);
  head->step.assign(n, BoundedBf16(step / std::sqrt(mean)));
  return absl::OkStatus();
}

// Principal components of the values as they are, or the compact form's rotation; every channel has
// the step that its sensitivity, seen through the rotation, asks for.
absl::Status SetUnscaled(const ArchiveHeadStatistics& of, double step,
                         std::span<const int16_t> shared, ArchiveHead* head) {
  const size_t n = of.mean.size();
  std::vector<double> u;
  if (!shared.empty()) {
    u = RotationMatrix(shared, n);
  } else {
    std::vector<double> covariance(n * n);
    for (size_t i = 0; i < n * n; ++i) {
      covariance[i] = of.second_moment[i] - of.mean[i / n] * of.mean[i % n];
    }
    absl::StatusOr<SymmetricEigen> eigen = EigenOfSymmetric(covariance, static_cast<int>(n));
    if (!eigen.ok()) return eigen.status();
    head->rotation = QuantizeRotation(eigen->vectors);
    u = RotationMatrix(head->rotation, n);
  }
  for (size_t j = 0; j < n; ++j) {
    double sensitivity = 0;
    for (size_t d = 0; d < n; ++d) sensitivity += u[d * n + j] * u[d * n + j] * of.sensitivity[d];
    head->step.push_back(BoundedBf16(step / std::sqrt(sensitivity)));
  }
  return absl::OkStatus();
}

// Means of |y| over the samples: [layer * 2 + part][heads * D * octaves].
class ClassChooser {
 public:
  explicit ClassChooser(const KvGeometry& g) : geometry_(g), sums_(size_t{2} * g.layers) {
    const size_t cells = static_cast<size_t>(g.kv_heads) * g.head_dim * kArchiveOctaves;
    for (Sums& sums : sums_) sums.magnitude.assign(cells, 0.0);
  }

  // y: as ArchiveTransform::Forward makes it, of one head.
  void Add(int layer, Part part, int h, int tokens, std::span<const float> y) {
    Sums& sums = sums_[layer * 2 + static_cast<int>(part)];
    if (h == 0) sums.blocks += tokens / kArchiveBlock;
    double* cell =
        sums.magnitude.data() + static_cast<size_t>(h) * geometry_.head_dim * kArchiveOctaves;
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t channel = i / tokens;
      const auto frequency = static_cast<uint32_t>(i % kArchiveBlock);
      cell[channel * kArchiveOctaves + std::bit_width(frequency)] += std::fabs(y[i]);
    }
  }

  void SetClasses(ArchiveProfile* archive) const {
    for (size_t i = 0; i < archive->heads.size(); ++i) {
      const int layer = static_cast<int>(i / 2) / geometry_.kv_heads;
      const size_t h = i / 2 % geometry_.kv_heads;
      const Sums& sums = sums_[static_cast<size_t>(layer) * 2 + i % 2];
      std::vector<uint8_t>& classes = archive->heads[i].classes;
      for (size_t c = 0; c < classes.size(); ++c) {
        const int octave = static_cast<int>(c % kArchiveOctaves);
        const double width = octave == 0 ? 1 : 1 << (octave - 1);
        const double mean = sums.magnitude[h * classes.size() + c] / (sums.blocks * width);
        const double level = kClassesPerDoubling * std::log2(std::max(mean, 1e-9) / kWeakest);
        classes[c] =
            static_cast<uint8_t>(std::clamp<double>(std::round(level), 0, kArchiveClasses - 1));
      }
    }
  }

 private:
  struct Sums {
    std::vector<double> magnitude;
    int64_t blocks = 0;
  };

  const KvGeometry geometry_;
  std::vector<Sums> sums_;
};

// Calls use(sample, transform, h, y) for every head of every sample.
template <class Use>
absl::Status ForEachSample(const ArchiveCodec& codec, std::span<const ArchiveSample> samples,
                           Use use) {
  std::vector<float> y;
  for (const ArchiveSample& sample : samples) {
    const absl::Status status =
        codec.ForEachHead(sample.layer, sample.part, sample.dtype, sample.first_token, sample.dense,
                          [&](const ArchiveTransform& transform, int h, std::span<const float> x) {
                            y.resize(x.size());
                            transform.Forward(codec.segment_tokens(), x.data(), y.data());
                            return use(sample, h, std::span<const float>(y));
                          });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Classes from the samples' magnitudes, then probabilities from their integers.
absl::Status TrainEntropyModel(CodecProfile* profile, std::span<const ArchiveSample> samples) {
  const KvGeometry& g = profile->geometry;
  absl::StatusOr<std::unique_ptr<const ArchiveCodec>> codec = ArchiveCodec::Create(*profile);
  if (!codec.ok()) return codec.status();
  const int tokens = profile->segment_tokens;
  ClassChooser chooser(g);
  absl::Status status =
      ForEachSample(**codec, samples, [&](const ArchiveSample& sample, int h, auto y) {
        chooser.Add(sample.layer, sample.part, h, tokens, y);
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  chooser.SetClasses(&*profile->archive);
  codec = ArchiveCodec::Create(*profile);
  if (!codec.ok()) return codec.status();

  std::vector<ArchiveBitCounts> counts(size_t{2} * kArchiveContexts);
  std::vector<int16_t> symbols(static_cast<size_t>(g.kv_heads) * g.head_dim * tokens);
  const float rounding = static_cast<float>(profile->archive->rounding) / 256.0f;
  status = ForEachSample(**codec, samples, [&](const ArchiveSample& sample, int h, auto y) {
    const auto size = static_cast<int64_t>(y.size());
    if (!archive::Quantize(y.data(), size, rounding, symbols.data() + h * size)) {
      return absl::InvalidArgumentError(absl::StrCat("a sample of layer ", sample.layer,
                                                     " has values beyond 32767 steps; the ",
                                                     "step is too small for it"));
    }
    if (h + 1 < g.kv_heads) return absl::OkStatus();
    CountArchiveSymbols((*codec)->Shape(sample.layer, sample.part), symbols,
                        std::span(counts).subspan(sample.part == Part::kK ? 0 : kArchiveContexts,
                                                  kArchiveContexts));
    return absl::OkStatus();
  });
  profile->archive->probabilities = ProbabilitiesFromCounts(counts);
  return status;
}

}  // namespace

absl::StatusOr<ArchiveProfile> BuildArchive(const CodecProfile& profile,
                                            const ArchiveStatistics& statistics,
                                            const ArchiveOptions& options,
                                            std::span<const ArchiveSample> samples) {
  if (auto s = CheckInput(profile, statistics, options, samples); !s.ok()) return s;
  CodecProfile made = profile;
  ArchiveProfile& archive = made.archive.emplace();
  archive.rope_frequencies = statistics.rope_frequencies;
  archive.rounding = options.rounding;
  archive.heads.resize(profile.heads.size());
  archive.probabilities.assign(size_t{2} * kArchiveContexts, 1 << (AdaptiveBit::kBits - 1));
  for (size_t i = 0; i < archive.heads.size(); ++i) {
    const ArchiveHeadStatistics& of = statistics.heads[i];
    ArchiveHead& head = archive.heads[i];
    for (double mean : of.mean) head.mean.push_back(FloatToBf16(static_cast<float>(mean)));
    head.classes.resize(of.mean.size() * kArchiveOctaves);
    const bool is_k = i % 2 == static_cast<size_t>(Part::kK);
    const std::span<const int16_t> shared =
        options.share_v_rotation ? std::span<const int16_t>(profile.heads[i].rotation)
                                 : std::span<const int16_t>();
    const absl::Status status =
        is_k ? SetScaled(of, options.step, &head) : SetUnscaled(of, options.step, shared, &head);
    if (!status.ok()) return status;
  }
  if (auto s = archive.Validate(profile.geometry); !s.ok()) return s;
  if (auto s = TrainEntropyModel(&made, samples); !s.ok()) return s;
  return std::move(archive);
}

}  // namespace fourierkv
