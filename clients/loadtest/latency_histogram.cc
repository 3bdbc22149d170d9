#include "clients/loadtest/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace fourierkv::loadtest {
namespace {

// Values of b > kBits bits are shifted right until kBits are left: 2^(kBits - 1) buckets for every
// b. Values of fewer bits have buckets of their own.
constexpr int kBits = 8;
constexpr int64_t kHalf = int64_t{1} << (kBits - 1);
constexpr int kLargestBits = 42;
constexpr size_t kBuckets = static_cast<size_t>((kLargestBits - kBits + 2) * kHalf);

int ShiftOf(int64_t value) {
  return std::max(0, static_cast<int>(std::bit_width(static_cast<uint64_t>(value))) - kBits);
}

size_t BucketOf(int64_t value) {
  const int shift = ShiftOf(value);
  return static_cast<size_t>(shift * kHalf + (value >> shift));
}

int64_t LowestOf(size_t bucket) {
  const auto b = static_cast<int64_t>(bucket);
  if (b < 2 * kHalf) return b;
  const int64_t shift = b / kHalf - 1;
  return (b - shift * kHalf) << shift;
}

}  // namespace

LatencyHistogram::LatencyHistogram() : buckets_(kBuckets) {}

void LatencyHistogram::Record(int64_t nanoseconds) {
  const int64_t value = std::clamp<int64_t>(nanoseconds, 0, kLargest);
  ++buckets_[BucketOf(value)];
  ++count_;
  min_ = std::min(min_, value);
  max_ = std::max(max_, value);
  sum_ += static_cast<double>(value);
}

void LatencyHistogram::Add(const LatencyHistogram& other) {
  for (size_t i = 0; i < kBuckets; ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  min_ = std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
}

void LatencyHistogram::Clear() {
  if (count_ > 0) *this = LatencyHistogram();
}

double LatencyHistogram::mean() const {
  return count_ == 0 ? 0 : sum_ / static_cast<double>(count_);
}

int64_t LatencyHistogram::Quantile(double q) const {
  if (count_ == 0) return 0;
  const auto wanted = static_cast<uint64_t>(std::ceil(q * static_cast<double>(count_)));
  const uint64_t rank = std::clamp<uint64_t>(wanted, 1, count_);
  uint64_t seen = 0;
  size_t bucket = 0;
  while ((seen += buckets_[bucket]) < rank) ++bucket;
  const int64_t lowest = LowestOf(bucket);
  const int64_t middle = lowest + (LowestOf(bucket + 1) - 1 - lowest) / 2;
  return std::clamp(middle, min_, max_);
}

void LatencyHistogram::ForEach(const std::function<void(int64_t, int64_t, uint64_t)>& visit) const {
  for (size_t i = 0; i < kBuckets; ++i) {
    if (buckets_[i] > 0) visit(LowestOf(i), LowestOf(i + 1) - 1, buckets_[i]);
  }
}

}  // namespace fourierkv::loadtest
