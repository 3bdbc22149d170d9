#include "compute/model/calibrate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "compute/cache/dense_kv_cache.h"
#include "compute/model/llama_runner.h"
#include "tests/compute/cache/reference_backend.h"

namespace fourierkv {
namespace {

class CalibrateTest : public testing::Test {
 protected:
  CalibrateTest() {
    options_.name = "test";
    options_.segment_tokens = 128;
    options_.coefficients = 4;
    for (int i = 0; i < 128 * 3 + 10; ++i) tokens_.push_back((i * i + i / 9) % 32);
  }
  absl::StatusOr<CodecProfile> Run() {
    return Calibrate(model_, pool_, &backend_, tokens_, options_);
  }

  std::shared_ptr<const LlamaModel> model_ =
      *LlamaModel::Load(FOURIERKV_TEST_DATA "/tiny-llama-f16");
  std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>(1);
  ReferenceBackend backend_;
  CalibrationOptions options_;
  std::vector<int32_t> tokens_;
};

int Channels(const CodecProfile& profile, int layer, int head, Part part, bool spectral, int bits) {
  int count = 0;
  for (const Band& band : profile.head(layer, head, part).bands) {
    if (band.spectral() == spectral && band.bits == bits) count += band.channels.size();
  }
  return count;
}

TEST_F(CalibrateTest, SharesHoldPerLayer) {
  options_.pool = ChannelPool::kLayer;
  options_.k_spectral = 0.7;  // of 2 heads of 8 channels
  options_.v_spectral = 0.5;
  options_.v_precise = 0.25;
  const auto profile = Run();
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_TRUE(profile->CheckFits(model_->config().Geometry()).ok());
  for (int l = 0; l < 2; ++l) {
    const auto both = [&](Part part, bool spectral, int bits) {
      return Channels(*profile, l, 0, part, spectral, bits) +
             Channels(*profile, l, 1, part, spectral, bits);
    };
    EXPECT_EQ(both(Part::kK, true, 8), 11);
    EXPECT_EQ(both(Part::kK, false, 4), 5);
    EXPECT_EQ(both(Part::kV, true, 8), 8);
    EXPECT_EQ(both(Part::kV, false, 4), 4);
    EXPECT_EQ(both(Part::kV, false, 8), 4);
  }
}

TEST_F(CalibrateTest, SharesHoldPerHeadIfAsked) {
  options_.pool = ChannelPool::kHead;
  options_.k_spectral = 0.5;
  const auto profile = Run();
  ASSERT_TRUE(profile.ok()) << profile.status();
  for (int head = 0; head < 2; ++head) {
    EXPECT_EQ(Channels(*profile, 1, head, Part::kK, true, 8), 4);
  }
}

TEST_F(CalibrateTest, SharesHoldOverTheModelIfNothingElseIsAsked) {
  options_.v_spectral = 0.3;
  const auto profile = Run();
  ASSERT_TRUE(profile.ok()) << profile.status();
  int spectral = 0;
  for (int i = 0; i < 4; ++i) spectral += Channels(*profile, i / 2, i % 2, Part::kV, true, 8);
  EXPECT_EQ(spectral, 9);  // of 32
}

TEST_F(CalibrateTest, AllOrNothingIsAllowed) {
  options_.k_spectral = 1;
  options_.v_spectral = 0;
  options_.resident_bits = 16;
  options_.basis = BasisKind::kMean;
  options_.coefficients = 1;
  const auto profile = Run();
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->head(0, 0, Part::kK).bands.size(), 1);
  EXPECT_TRUE(profile->head(0, 0, Part::kK).bands[0].spectral());
  EXPECT_FALSE(profile->head(0, 0, Part::kV).bands[0].spectral());
}

TEST_F(CalibrateTest, NoResidentChannelOfKIsLessHarmfulThanASpectralOne) {
  const auto profile = Run();
  ASSERT_TRUE(profile.ok()) << profile.status();
  // The score by its definition: all of the S coefficients behind the first M are lost.
  constexpr int kS = 128, kChannels = 16;
  std::vector<double> lost(kChannels), q_energy(kChannels);
  ForwardOptions observe;
  observe.on_qkv = [&](int layer, int64_t first, int, const float* q, const float* k,
                       const float*) {
    if (layer != 1 || first == 0) return absl::OkStatus();
    for (int d = 0; d < kChannels; ++d) {
      for (int m = 4; m < kS; ++m) {
        double c = 0;
        for (int t = 0; t < kS; ++t) {
          c += BasisValue(BasisKind::kDct2, kS, m, t) * k[t * kChannels + d];
        }
        lost[d] += c * c;
      }
    }
    for (int i = 0; i < kS * 32; ++i) {
      q_energy[i % 32 / 16 * 8 + i % 8] += static_cast<double>(q[i]) * q[i];
    }
    return absl::OkStatus();
  };
  auto cache = *DenseKvCache::Create(model_->config().Geometry(), &backend_, 1000);
  LlamaRunner runner(model_, pool_);
  ForwardOutput out;
  ASSERT_TRUE(Prefill(runner, std::span(tokens_).first(3 * kS), *cache, &out, kS, observe).ok());
  double most_spectral = 0, least_resident = HUGE_VAL;
  for (int head = 0; head < 2; ++head) {
    for (const Band& band : profile->head(1, head, Part::kK).bands) {
      for (uint16_t d : band.channels) {
        const double harm = lost[head * 8 + d] * q_energy[head * 8 + d];
        if (band.spectral()) {
          most_spectral = std::max(most_spectral, harm);
        } else {
          least_resident = std::min(least_resident, harm);
        }
      }
    }
  }
  EXPECT_LE(most_spectral, least_resident * (1 + 1e-5));
}

TEST_F(CalibrateTest, RefusesBadOptions) {
  const CalibrationOptions good = options_;
  const auto expect_refused = [&](auto change) {
    options_ = good;
    change(options_);
    EXPECT_TRUE(absl::IsInvalidArgument(Run().status())) << Run().status();
  };
  expect_refused([](auto& o) { o.k_spectral = 1.1; });
  expect_refused([](auto& o) { o.v_spectral = NAN; });
  expect_refused([](auto& o) { o.v_precise = -1; });
  expect_refused([](auto& o) { o.coefficients = 0; });
  expect_refused([](auto& o) { o.coefficients = 129; });
  expect_refused([](auto& o) { o.basis = BasisKind::kMean; });
  expect_refused([](auto& o) { o.segment_tokens = 0; });
  expect_refused([](auto& o) { o.segment_tokens = 100; });
  expect_refused([](auto& o) { o.resident_bits = 5; });
  expect_refused([](auto& o) { o.name = ""; });
  options_ = good;
  tokens_.resize(128 * 3 - 1);
  EXPECT_TRUE(absl::IsInvalidArgument(Run().status()));
}

}  // namespace
}  // namespace fourierkv
