// The working form of a middle against the float64 reference.

#include "compute/sequence/sequence_middle.h"

#include <gtest/gtest.h>

#include "compute/codec/sequence_reference.h"
#include "tests/compute/sequence/sequence_test_util.h"

namespace fourierkv {
namespace {

constexpr SequenceScope kScope{.sink_tokens = 3, .recent_tokens = 17, .frequencies = 24};
constexpr KvGeometry kGeometry{.layers = 1, .kv_heads = 3, .head_dim = 24};

struct Case {
  const char* name;
  KvDtype dtype;
  int bits;
  bool rescale;
};

class Middle : public ::testing::TestWithParam<Case> {
 protected:
  Middle() : seed_(FreshSeed()), random_(seed_) {
    SequenceScope scope = kScope;
    scope.peak_rescale = GetParam().rescale;
    layout_ = std::make_unique<SequenceLayout>(
        RandomSequenceProfile(random_, kGeometry, scope, GetParam().bits));
    tokens_ = std::uniform_int_distribution<int64_t>(100, 900)(random_);
    capacity_ = tokens_ + std::uniform_int_distribution<int64_t>(0, 300)(random_);
    middle_ = scope.MiddleTokens(tokens_);
    dense_ =
        RandomSequence(random_, GetParam().dtype, kGeometry.kv_heads, tokens_, kGeometry.head_dim);
    basis_ = std::make_shared<const SequenceBasis>(scope.Period(capacity_), scope.frequencies);
  }

  const uint16_t* MiddleOf(int head) const {
    return dense_.data() + (head * tokens_ + kScope.sink_tokens) * kGeometry.head_dim;
  }

  SequenceMiddle Fill(Part part) const {
    SequenceMiddle middle(&layout_->part(0, part), basis_);
    for (int h = 0; h < kGeometry.kv_heads; ++h) {
      middle.AppendHead(h, GetParam().dtype, MiddleOf(h), middle_);
      middle.SettleHead(h, GetParam().dtype, MiddleOf(h));
    }
    return middle;
  }

  // The middle's decoded values of head h: [middle][head_dim].
  std::vector<float> Decode(const SequenceMiddle& middle, int h) const {
    const int dim = kGeometry.head_dim, tile_tokens = basis_->tile_tokens();
    SequenceBasis::Scratch scratch;
    std::vector<float> rows(dim * tile_tokens), out(middle.tokens() * dim);
    std::vector<uint16_t> order = middle.channels(h).spectral;
    order.insert(order.end(), middle.channels(h).resident.begin(),
                 middle.channels(h).resident.end());
    for (int64_t t = 0; t < middle.tokens(); ++t) {
      if (t % tile_tokens == 0) middle.DecodeTile(h, t / tile_tokens, rows.data(), scratch);
      for (int j = 0; j < dim; ++j) {
        out[t * dim + order[j]] = rows[j * tile_tokens + t % tile_tokens];
      }
    }
    return out;
  }

  // The same from a payload of the reference.
  std::vector<double> Reference(Part part, int h) const {
    const SequencePart& layout = layout_->part(0, part);
    std::vector<std::byte> payload(layout.PayloadBytes(tokens_));
    reference::EncodeSequence(layout, tokens_, capacity_, GetParam().dtype, dense_, payload);
    const std::vector<double> all = reference::DecodeSequence(layout, GetParam().dtype, payload);
    const int64_t first = (h * tokens_ + kScope.sink_tokens) * kGeometry.head_dim;
    return {all.begin() + first, all.begin() + first + middle_ * kGeometry.head_dim};
  }

  // Coefficients that round to another bf16 are off by 2^-8 of themselves.
  double tolerance() const { return GetParam().bits == 16 ? 1e-4 : 3e-6; }

  const uint64_t seed_;
  std::mt19937_64 random_;
  std::unique_ptr<SequenceLayout> layout_;
  std::shared_ptr<const SequenceBasis> basis_;
  int64_t tokens_ = 0, capacity_ = 0, middle_ = 0;
  std::vector<uint16_t> dense_;
};

TEST_P(Middle, DecodesToWhatTheReferenceDecodesTo) {
  SCOPED_TRACE(seed_);
  for (Part part : kParts) {
    const SequenceMiddle middle = Fill(part);
    for (int h = 0; h < kGeometry.kv_heads; ++h) {
      SCOPED_TRACE(PartName(part) + std::to_string(h));
      EXPECT_LT(RelativeDistance(Decode(middle, h), Reference(part, h)), tolerance());
    }
  }
}

// Rounding and rescaling belong to the first fill, so neither takes part.
class GrowingMiddle : public Middle {};

TEST_P(GrowingMiddle, IsWhatAllTokensAtOnceGive) {
  SCOPED_TRACE(seed_);
  SequenceMiddle grown(&layout_->part(0, Part::kK), basis_);
  for (int h = 0; h < kGeometry.kv_heads; ++h) {
    for (int64_t first = 0; first < middle_;) {  // single tokens, few and many
      const int64_t n =
          std::min(middle_ - first, std::uniform_int_distribution<int64_t>(1, 40)(random_));
      grown.AppendHead(h, GetParam().dtype, MiddleOf(h) + first * kGeometry.head_dim, n);
      first += n;
    }
    EXPECT_LT(RelativeDistance(Decode(grown, h), Reference(Part::kK, h)), tolerance());
  }
}

TEST_P(Middle, SurvivesItsPayload) {
  SCOPED_TRACE(seed_);
  const SequencePart& layout = layout_->part(0, Part::kV);
  const SequenceMiddle middle = Fill(Part::kV);
  SequenceMiddle again(&layout, basis_);
  std::vector<std::byte> payload(layout.PayloadBytes(tokens_), std::byte{0x77});
  int64_t start = layout.HeadsOffset(tokens_);
  for (int h = 0; h < kGeometry.kv_heads; ++h) {
    const SequencePart::HeadOffsets at = layout.Place(h, start, middle_);
    middle.WriteHead(h, at, payload.data());
    again.ReadHead(h, at, middle_, payload.data());
    start = at.end;
    EXPECT_EQ(Decode(again, h), Decode(middle, h));
  }
  EXPECT_EQ(start, static_cast<int64_t>(payload.size()));
}

TEST_P(Middle, CountsItsBytes) {
  int64_t expected = 0;
  for (const SequenceHead& head : layout_->part(0, Part::kK).heads) {
    expected += head.spectral.size() * (kScope.states() * 4 + (GetParam().rescale ? 8 : 0)) +
                head.resident.size() * middle_ * 2;
  }
  EXPECT_EQ(SequenceMiddle::BytesFor(layout_->part(0, Part::kK), middle_), expected);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Middle,
                         ::testing::Values(Case{"Bf16", KvDtype::kBf16, 32, false},
                                           Case{"Fp16", KvDtype::kFp16, 32, false},
                                           Case{"NarrowCoefficients", KvDtype::kBf16, 16, false},
                                           Case{"Rescaled", KvDtype::kBf16, 32, true},
                                           Case{"RescaledNarrow", KvDtype::kFp16, 16, true}),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Kinds, GrowingMiddle,
                         ::testing::Values(Case{"Bf16", KvDtype::kBf16, 32, false},
                                           Case{"Fp16", KvDtype::kFp16, 32, false}),
                         [](const auto& info) { return info.param.name; });

TEST(MiddleRescale, RestoresMeanAndPeakOfEveryChannel) {
  const uint64_t seed = FreshSeed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  SequenceScope scope = kScope;
  scope.peak_rescale = true;
  const SequenceLayout layout(RandomSequenceProfile(random, {1, 1, 8}, scope, 32));
  const int64_t n = 333;
  auto basis = std::make_shared<const SequenceBasis>(n + 50, scope.frequencies);
  const std::vector<uint16_t> dense = RandomSequence(random, KvDtype::kBf16, 1, n, 8);
  SequenceMiddle middle(&layout.part(0, Part::kK), basis);  // every channel is spectral
  middle.AppendHead(0, KvDtype::kBf16, dense.data(), n);
  middle.SettleHead(0, KvDtype::kBf16, dense.data());
  SequenceBasis::Scratch scratch;
  std::vector<float> rows(8 * basis->tile_tokens());
  std::vector<double> decoded[8], original[8];
  for (int64_t t = 0; t < n; ++t) {
    const int64_t tile = t / basis->tile_tokens(), in_tile = t % basis->tile_tokens();
    if (in_tile == 0) middle.DecodeTile(0, tile, rows.data(), scratch);
    for (int d = 0; d < 8; ++d) {
      decoded[d].push_back(rows[d * basis->tile_tokens() + in_tile]);
      original[d].push_back(Bf16ToFloat(dense[t * 8 + d]));
    }
  }
  const auto mean = [&](const std::vector<double>& x) {
    double sum = 0;
    for (double value : x) sum += value;
    return sum / n;
  };
  const auto peak = [&](const std::vector<double>& x) {
    double largest = 0;
    for (double value : x) largest = std::max(largest, std::abs(value - mean(x)));
    return largest;
  };
  for (int d = 0; d < 8; ++d) {
    EXPECT_NEAR(mean(decoded[d]), mean(original[d]), 1e-4);
    EXPECT_NEAR(peak(decoded[d]), peak(original[d]), 1e-4);
  }
}

TEST(MiddleRescale, LeavesAChannelOfZerosAlone) {
  SequenceScope scope = kScope;
  scope.peak_rescale = true;
  std::mt19937_64 random(1);
  const SequenceLayout layout(RandomSequenceProfile(random, {1, 1, 8}, scope, 32));
  const std::vector<uint16_t> zeros(200 * 8);
  SequenceMiddle middle(&layout.part(0, Part::kK),
                        std::make_shared<const SequenceBasis>(250, scope.frequencies));
  middle.AppendHead(0, KvDtype::kBf16, zeros.data(), 200);
  middle.SettleHead(0, KvDtype::kBf16, zeros.data());
  EXPECT_EQ(middle.head(0).gain, std::vector<float>(8, 1.0f));
  EXPECT_EQ(middle.head(0).shift, std::vector<float>(8, 0.0f));
}

}  // namespace
}  // namespace fourierkv
