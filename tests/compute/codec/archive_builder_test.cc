#include "compute/codec/archive_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>

#include "compute/codec/archive_codec.h"
#include "compute/codec/reference_archive.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

constexpr int kTokens = 128;
const KvGeometry kGeometry{.layers = 1, .kv_heads = 2, .head_dim = 32};

// Values of few slow components and a little noise: what archives are good at.
class Source {
 public:
  explicit Source(uint64_t seed) : rng_(seed), mixing_(size_t{2} * kGeometry.head_dim) {
    for (auto& m : mixing_) m = normal_(rng_);
  }

  // Statistics of values without RoPE (position 0 throughout: no angle), all sensitivities 1.
  ArchiveStatistics Statistics() {
    ArchiveStatistics statistics;
    const size_t n = kGeometry.head_dim;
    statistics.rope_frequencies.assign(n / 2, 0.0);
    for (int i = 0; i < 4; ++i) {
      ArchiveHeadStatistics& head = statistics.heads.emplace_back();
      head.mean.assign(n, 0.0);
      head.second_moment.assign(n * n, 0.0);
      head.sensitivity.assign(n, 1.0);
    }
    for (int round = 0; round < 20; ++round) {
      for (Part part : kParts) {
        const std::vector<uint16_t> dense = Next(part).dense;
        for (size_t row = 0; row < dense.size() / n; ++row) {
          ArchiveHeadStatistics& head =
              statistics.heads[row / kTokens * 2 + static_cast<int>(part)];
          const double share = 1.0 / (20 * kTokens);
          const auto value = [&](size_t d) { return double{Bf16ToFloat(dense[row * n + d])}; };
          for (size_t d = 0; d < n; ++d) {
            head.mean[d] += share * value(d);
            for (size_t e = 0; e < n; ++e) {
              head.second_moment[d * n + e] += share * value(d) * value(e);
            }
          }
        }
      }
    }
    return statistics;
  }

  ArchiveSample Next(Part part) {
    ArchiveSample sample{.layer = 0, .part = part, .dense = {}};
    const int n = kGeometry.head_dim;
    for (int h = 0; h < kGeometry.kv_heads; ++h) {
      double slow[2] = {normal_(rng_), normal_(rng_)};
      for (int t = 0; t < kTokens; ++t) {
        for (double& s : slow) s = 0.98 * s + 0.2 * normal_(rng_);
        for (int d = 0; d < n; ++d) {
          const double value = 3 + slow[0] * mixing_[d] + slow[1] * mixing_[n + d];
          sample.dense.push_back(FloatToBf16(static_cast<float>(value + 0.01 * normal_(rng_))));
        }
      }
    }
    return sample;
  }

 private:
  std::mt19937_64 rng_;
  std::normal_distribution<double> normal_;
  std::vector<double> mixing_;
};

CodecProfile Profile() {
  CodecProfile profile = UniformProfile(kGeometry, 0, 0, 1, 4);
  profile.segment_tokens = kTokens;
  return profile;
}

std::vector<ArchiveSample> Samples(Source& source, int count) {
  std::vector<ArchiveSample> samples;
  for (int i = 0; i < count; ++i) {
    for (Part part : kParts) samples.push_back(source.Next(part));
  }
  return samples;
}

// Sum of log2(1 / frequency) of the integers, each channel and frequency on its own.
double IdealBits(const std::vector<std::vector<int16_t>>& parts) {
  std::map<std::pair<size_t, int>, int> counts;  // (channel and frequency, value)
  const auto place = [](size_t i) { return i / kTokens * kArchiveBlock + i % kArchiveBlock; };
  for (const auto& part : parts) {
    for (size_t i = 0; i < part.size(); ++i) ++counts[{place(i), part[i]}];
  }
  const double samples = static_cast<double>(parts.size()) * kTokens / kArchiveBlock;
  double bits = 0;
  for (const auto& [key, count] : counts) bits -= count * std::log2(count / samples);
  return bits;
}

TEST(ArchiveBuilder, ComesNearTheEntropyOfUnseenData) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Source source(seed);
  CodecProfile profile = Profile();
  const auto archive =
      BuildArchive(profile, source.Statistics(), {.step = 0.2}, Samples(source, 60));
  ASSERT_TRUE(archive.ok()) << archive.status();
  profile.archive = *archive;
  ASSERT_TRUE(profile.Validate().ok()) << profile.Validate();
  const auto codec = ArchiveCodec::Create(profile);
  ASSERT_TRUE(codec.ok()) << codec.status();

  std::vector<std::vector<int16_t>> symbols;
  size_t bytes = 0;
  double worst = 0;
  for (int i = 0; i < 100; ++i) {
    const ArchiveSample sample = source.Next(Part::kV);
    const auto archived = (*codec)->Encode(0, Part::kV, sample.dtype, 0, sample.dense);
    ASSERT_TRUE(archived.ok()) << archived.status();
    bytes += archived->payload.size();
    worst = std::max<double>(worst, archived->relative_error);
    symbols.push_back(*(*codec)->DecodeSymbols(0, Part::kV, archived->payload));
  }
  // Payloads are tiny here (some 60 bytes), so that rounding up to bytes and the end mark count.
  EXPECT_LT(8.0 * static_cast<double>(bytes), 1.2 * IdealBits(symbols) + 100 * 24);
  EXPECT_LT(worst, 0.1);
  const double dense = 100.0 * 2 * kTokens * kGeometry.kv_heads * kGeometry.head_dim;
  EXPECT_LT(static_cast<double>(bytes), dense / 50);
}

TEST(ArchiveBuilder, ALargerStepCostsAccuracyAndSavesBytes) {
  Source source(5);
  const ArchiveStatistics statistics = source.Statistics();
  const std::vector<ArchiveSample> samples = Samples(source, 20);
  size_t last_bytes = std::numeric_limits<size_t>::max();
  double last_error = 0;
  for (double step : {0.05, 0.2, 0.8}) {
    CodecProfile profile = Profile();
    profile.archive = *BuildArchive(profile, statistics, {.step = step}, samples);
    const auto codec = *ArchiveCodec::Create(profile);
    const auto archived = codec->Encode(0, Part::kK, KvDtype::kBf16, 0, samples[0].dense);
    ASSERT_TRUE(archived.ok()) << archived.status();
    EXPECT_LT(archived->payload.size(), last_bytes);
    EXPECT_GT(archived->relative_error, last_error);
    last_bytes = archived->payload.size();
    last_error = archived->relative_error;
  }
}

TEST(ArchiveBuilder, SensitiveChannelsAreKeptBetter) {
  Source source(6);
  ArchiveStatistics statistics = source.Statistics();
  for (ArchiveHeadStatistics& head : statistics.heads) head.sensitivity[7] = 1000;
  CodecProfile profile = Profile();
  const std::vector<ArchiveSample> samples = Samples(source, 20);
  profile.archive = *BuildArchive(profile, statistics, {.step = 2}, samples);
  const auto codec = *ArchiveCodec::Create(profile);
  const std::vector<uint16_t>& dense = samples[0].dense;  // of K
  const auto archived = codec->Encode(0, Part::kK, KvDtype::kBf16, 0, dense);
  ASSERT_TRUE(archived.ok()) << archived.status();
  std::vector<uint16_t> decoded(dense.size());
  ASSERT_TRUE(
      codec->Decode(0, Part::kK, KvDtype::kBf16, 0, archived->payload, std::span(decoded)).ok());
  double sensitive = 0, others = 0;
  for (size_t i = 0; i < dense.size(); ++i) {
    const double difference = Bf16ToFloat(dense[i]) - Bf16ToFloat(decoded[i]);
    (i % kGeometry.head_dim == 7 ? sensitive : others) += difference * difference;
  }
  EXPECT_LT(sensitive, others / (kGeometry.head_dim - 1));
}

TEST(ArchiveBuilder, VMaySpareItsOwnRotation) {
  Source source(8);
  std::mt19937_64 rng(8);
  CodecProfile profile = Profile();
  for (HeadProfile& head : profile.heads) head.rotation = RandomRotation(rng, kGeometry.head_dim);
  const auto archive = BuildArchive(profile, source.Statistics(),
                                    {.step = 0.2, .share_v_rotation = true}, Samples(source, 5));
  ASSERT_TRUE(archive.ok()) << archive.status();
  EXPECT_FALSE(archive->heads[0].rotation.empty());  // K
  EXPECT_TRUE(archive->heads[1].rotation.empty());   // V
}

TEST(ArchiveBuilder, FaultsAreNamed) {
  Source source(9);
  const ArchiveStatistics good = source.Statistics();
  const std::vector<ArchiveSample> samples = Samples(source, 2);
  const auto expect = [&](const std::string& message,
                          const std::function<void(ArchiveStatistics&, ArchiveOptions&,
                                                   std::vector<ArchiveSample>&)>& spoil) {
    ArchiveStatistics statistics = good;
    ArchiveOptions options{.step = 0.2};
    std::vector<ArchiveSample> given = samples;
    spoil(statistics, options, given);
    const absl::Status status = BuildArchive(Profile(), statistics, options, given).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(message));
  };
  expect("step is 0", [](auto&, auto& o, auto&) { o.step = 0; });
  expect("step is inf", [](auto&, auto& o, auto&) { o.step = HUGE_VAL; });
  expect("archive.rounding is 200", [](auto&, auto& o, auto&) { o.rounding = 200; });
  expect("statistics are of 3 heads", [](auto& s, auto&, auto&) { s.heads.pop_back(); });
  expect("statistics.heads[2] must have", [](auto& s, auto&, auto&) { s.heads[2].mean.clear(); });
  expect("statistics.heads[1] has values that are not finite",
         [](auto& s, auto&, auto&) { s.heads[1].second_moment[3] = std::nan(""); });
  expect("statistics.heads[0].sensitivity[4] is not positive",
         [](auto& s, auto&, auto&) { s.heads[0].sensitivity[4] = 0; });
  expect("archive.rope_frequencies has 0",
         [](auto& s, auto&, auto&) { s.rope_frequencies.clear(); });
  expect("no sample of K of layer 0", [](auto&, auto&, auto& given) { given.clear(); });
  expect("a sample is of layer 1", [](auto&, auto&, auto& given) { given[0].layer = 1; });
  expect("dense data has 0 values", [](auto&, auto&, auto& given) { given[0].dense.clear(); });
  expect("the step is too small",
         [](auto&, auto&, auto& given) { given[1].dense[5] = FloatToBf16(1e20f); });
}

}  // namespace
}  // namespace fourierkv
