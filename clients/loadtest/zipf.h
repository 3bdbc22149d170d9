// Which of many keys is asked for: a few often, most rarely.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fourierkv::loadtest {

// Rank i of n is drawn with probability (i + 1)^-s / sum_{k=1..n} k^-s. s = 0: all alike.
class ZipfSampler {
 public:
  // n >= 1, s >= 0 and finite. Takes 8 n bytes.
  ZipfSampler(uint32_t n, double s);

  // The rank whose share of [0, 1) holds `uniform`.
  uint32_t Rank(double uniform) const;

 private:
  std::vector<double> cumulative_;  // of ranks 0 to i; the last is 1
};

}  // namespace fourierkv::loadtest
