#include "clients/loadtest/arrivals.h"

#include <cmath>

#include "clients/loadtest/random.h"

namespace fourierkv::loadtest {

Arrivals::Arrivals(ArrivalProcess process, double rate, uint64_t seed)
    : process_(process), gap_(1e9 / rate), seed_(Mix64(seed, 0xa221)) {}

int64_t Arrivals::Next() {
  const uint64_t number = number_++;
  if (process_ == ArrivalProcess::kConstant) {
    // Not a sum of gaps, whose rounding errors would add up.
    return static_cast<int64_t>(gap_ * static_cast<double>(number));
  }
  time_ -= gap_ * std::log1p(-ToUnit(Mix64(seed_, number)));
  return static_cast<int64_t>(time_);
}

}  // namespace fourierkv::loadtest
