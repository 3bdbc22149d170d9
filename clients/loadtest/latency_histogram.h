// Counts of latencies with bounded relative error and constant memory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace fourierkv::loadtest {

// Counts nanoseconds from 0 to 2^42 (73 minutes; longer ones count as that) in buckets no wider
// than 1/128 of the values in them, so that what Quantile returns is within 1/256 of a recorded
// value (in the manner of HdrHistogram, http://hdrhistogram.org). 36 KiB. Not thread safe.
class LatencyHistogram {
 public:
  static constexpr int64_t kLargest = (int64_t{1} << 42) - 1;

  LatencyHistogram();

  // Negative values count as 0.
  void Record(int64_t nanoseconds);
  void Add(const LatencyHistogram& other);
  void Clear();

  uint64_t count() const { return count_; }
  int64_t min() const { return count_ == 0 ? 0 : min_; }  // exact
  int64_t max() const { return max_; }                    // exact
  double mean() const;                                    // exact
  // The middle of the bucket that holds the value of rank ceil(q * count) in increasing order, for
  // q in [0, 1]; 0 without values. Never below min() or above max().
  int64_t Quantile(double q) const;

  // Calls visit(lowest, highest, count) for every bucket that is not empty, in increasing order;
  // both bounds belong to the bucket.
  void ForEach(const std::function<void(int64_t, int64_t, uint64_t)>& visit) const;

 private:
  std::vector<uint64_t> buckets_;
  uint64_t count_ = 0;
  int64_t min_ = kLargest;
  int64_t max_ = 0;
  double sum_ = 0;
};

}  // namespace fourierkv::loadtest
