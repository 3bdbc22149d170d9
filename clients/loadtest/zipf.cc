#include "clients/loadtest/zipf.h"

#include <algorithm>
#include <cmath>

namespace fourierkv::loadtest {

ZipfSampler::ZipfSampler(uint32_t n, double s) : cumulative_(n) {
  double sum = 0;
  for (uint32_t i = 0; i < n; ++i) {
    sum += std::pow(i + 1.0, -s);
    cumulative_[i] = sum;
  }
  for (double& c : cumulative_) c /= sum;
  cumulative_.back() = 1;
}

uint32_t ZipfSampler::Rank(double uniform) const {
  const auto it = std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, uniform);
  return static_cast<uint32_t>(it - cumulative_.begin());
}

}  // namespace fourierkv::loadtest
