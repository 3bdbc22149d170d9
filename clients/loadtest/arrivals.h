// When operations are to be sent, decided before any answer is seen.

#pragma once

#include <cstdint>

namespace fourierkv::loadtest {

enum class ArrivalProcess : uint8_t { kConstant, kPoisson };

// An endless schedule. The same arguments give the same one.
class Arrivals {
 public:
  // `rate` operations a second, > 0.
  Arrivals(ArrivalProcess process, double rate, uint64_t seed);

  // Nanoseconds from the start to the next arrival; never decreasing. Constant: arrival k at k /
  // rate. Poisson: gaps are independent, exponentially distributed with mean 1 / rate.
  int64_t Next();

 private:
  const ArrivalProcess process_;
  const double gap_;  // mean, nanoseconds
  const uint64_t seed_;
  uint64_t number_ = 0;
  double time_ = 0;
};

}  // namespace fourierkv::loadtest
