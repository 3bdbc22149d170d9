#include "clients/search/allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr int kBisections = 60;

class Solver {
 public:
  Solver(std::span<const HeadCosts> heads, std::span<const double> sensitivities,
         std::span<const Representation> representations, const AllocationOptions& options)
      : heads_(heads), sensitivities_(sensitivities), smallest_band_(options.smallest_band) {
    for (const Representation& r : representations) {
      bits_.push_back(BitsPerValue(r, options.segment_tokens));
    }
  }

  double Harm(size_t head, size_t r, size_t channel, size_t channels) const {
    return sensitivities_[head] * heads_[head].errors[r * channels + channel];
  }

  // The largest harm of any channel in any representation: lambdas stand in relation to it.
  double LargestHarm() const {
    double largest = 0;
    for (size_t h = 0; h < heads_.size(); ++h) {
      for (const double error : heads_[h].errors) {
        largest = std::max(largest, sensitivities_[h] * error);
      }
    }
    return largest;
  }

  Allocation At(double lambda) const {
    Allocation result;
    size_t values = 0;
    for (size_t h = 0; h < heads_.size(); ++h) {
      const size_t channels = heads_[h].errors.size() / bits_.size();
      HeadChoice choice(channels);
      for (size_t d = 0; d < channels; ++d) {
        double best = std::numeric_limits<double>::infinity();
        for (size_t r = 0; r < bits_.size(); ++r) {
          const double cost = Harm(h, r, d, channels) + lambda * bits_[r];
          if (cost < best) {
            best = cost;
            choice[d] = static_cast<uint8_t>(r);
          }
        }
      }
      JoinSmallBands(&choice);
      for (size_t d = 0; d < channels; ++d) {
        result.bits_per_value += bits_[choice[d]];
        result.harm += Harm(h, choice[d], d, channels);
      }
      values += channels;
      result.heads.push_back(std::move(choice));
    }
    result.bits_per_value /= static_cast<double>(values);
    return result;
  }

 private:
  void JoinSmallBands(HeadChoice* choice) const {
    std::vector<int> counts(bits_.size(), 0);
    for (const uint8_t r : *choice) ++counts[r];
    for (size_t r = 0; r < bits_.size(); ++r) {
      if (counts[r] == 0 || counts[r] >= smallest_band_) continue;
      size_t richer = r + 1;
      while (richer < bits_.size() && counts[richer] == 0) ++richer;
      if (richer == bits_.size()) continue;
      std::replace(choice->begin(), choice->end(), static_cast<uint8_t>(r),
                   static_cast<uint8_t>(richer));
      counts[richer] += counts[r];
      counts[r] = 0;
    }
  }

  const std::span<const HeadCosts> heads_;
  const std::span<const double> sensitivities_;
  const int smallest_band_;
  std::vector<double> bits_;
};

}  // namespace

absl::StatusOr<Allocation> Allocate(std::span<const HeadCosts> heads,
                                    std::span<const double> sensitivities,
                                    std::span<const Representation> representations,
                                    double bits_per_value, const AllocationOptions& options) {
  if (heads.empty() || heads.size() != sensitivities.size() || representations.empty() ||
      representations.size() > 255) {
    return absl::InvalidArgumentError(
        absl::StrCat(heads.size(), " heads, ", sensitivities.size(), " sensitivities and ",
                     representations.size(), " representations do not make a problem to solve"));
  }
  const Solver solver(heads, sensitivities, representations, options);
  // At lambda 0 every channel takes its best; so large a lambda that bits alone count gives the
  // cheapest. Bisected on a logarithmic scale between the two.
  const double largest = std::max(solver.LargestHarm(), std::numeric_limits<double>::min());
  double low = std::log(largest) - 60, high = std::log(largest) + 20;
  Allocation best = solver.At(std::exp(high));
  if (best.bits_per_value > bits_per_value) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a budget of ", bits_per_value, " bits per value is less than the ", best.bits_per_value,
        " of the cheapest representation for every channel; allow a smaller ratio or cheaper ",
        "representations"));
  }
  for (int i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2;
    Allocation candidate = solver.At(std::exp(middle));
    if (candidate.bits_per_value <= bits_per_value) {
      high = middle;
      best = std::move(candidate);
    } else {
      low = middle;
    }
  }
  return best;
}

HeadProfile MakeHeadProfile(const HeadCosts& costs, const HeadChoice& choice,
                            std::span<const Representation> representations) {
  HeadProfile head;
  head.rotation = costs.rotation;
  for (const bool spectral : {true, false}) {
    for (size_t r = 0; r < representations.size(); ++r) {
      const Representation& of = representations[r];
      if ((of.coefficients > 0) != spectral) continue;
      Band band{of.coefficients, of.bits, {}};
      for (size_t d = 0; d < choice.size(); ++d) {
        if (choice[d] == r) band.channels.push_back(static_cast<uint16_t>(d));
      }
      if (!band.channels.empty()) head.bands.push_back(std::move(band));
    }
  }
  return head;
}

}  // namespace fourierkv
