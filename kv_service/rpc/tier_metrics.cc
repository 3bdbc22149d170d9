#include "kv_service/rpc/tier_metrics.h"

#include <functional>
#include <limits>
#include <string>
#include <utility>

namespace fourierkv {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

class Collector {
 public:
  explicit Collector(const TieredStore& tiers) : tiers_(tiers) {
    for (const auto& runner : tiers.tiers()) stats_.push_back(runner->tier().Stats());
  }

  using Value = std::function<double(const TierStats&, const TierMetrics&)>;
  void Gauge(const char* name, const char* help, const Value& value) {
    Add(name, help, MetricType::Gauge, [&](ClientMetric& metric, size_t i) {
      metric.gauge.value = value(stats_[i], tiers_.tiers()[i]->metrics());
    });
  }
  void Counter(const char* name, const char* help, const Value& value) {
    Add(name, help, MetricType::Counter, [&](ClientMetric& metric, size_t i) {
      metric.counter.value = value(stats_[i], tiers_.tiers()[i]->metrics());
    });
  }
  void Histogram(const char* name, const char* help,
                 const LatencyHistogram& (*of)(const TierMetrics&)) {
    Add(name, help, MetricType::Histogram, [&](ClientMetric& metric, size_t i) {
      FillHistogram(of(tiers_.tiers()[i]->metrics()), metric);
    });
  }

  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  void Add(const char* name, const char* help, MetricType type,
           const std::function<void(ClientMetric&, size_t)>& fill) {
    MetricFamily family{std::string("fourierkv_tier_") + name, help, type, {}};
    for (size_t i = 0; i < stats_.size(); ++i) {
      ClientMetric metric;
      metric.label.push_back({"tier", std::string(tiers_.tiers()[i]->tier().name())});
      fill(metric, i);
      family.metric.push_back(std::move(metric));
    }
    families_.push_back(std::move(family));
  }

  const TieredStore& tiers_;
  std::vector<TierStats> stats_;
  std::vector<MetricFamily> families_;
};

double Of(uint64_t n) { return static_cast<double>(n); }

}  // namespace

void FillHistogram(const LatencyHistogram& from, ClientMetric& to) {
  const auto counts = from.counts();
  uint64_t cumulative = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    cumulative += counts[i];
    const bool last = i == LatencyHistogram::kBounds.size();
    to.histogram.bucket.push_back({cumulative, last ? std::numeric_limits<double>::infinity()
                                                    : LatencyHistogram::kBounds[i]});
  }
  to.histogram.sample_count = cumulative;
  to.histogram.sample_sum = from.sum_seconds();
}

std::vector<MetricFamily> CollectTiers(const TieredStore& tiers) {
  if (tiers.empty()) return {};
  using S = const TierStats&;
  using M = const TierMetrics&;
  Collector c(tiers);
  c.Gauge("healthy", "1 if the tier works, 0 while it fails.",
          [](S s, M) { return s.healthy ? 1.0 : 0.0; });
  c.Gauge("segments", "Segments held.", [](S s, M) { return static_cast<double>(s.segments); });
  c.Gauge("bytes", "Bytes held.", [](S s, M) { return static_cast<double>(s.bytes); });
  c.Gauge("limit_bytes", "Byte budget; 0: bounded elsewhere.",
          [](S s, M) { return static_cast<double>(s.limit_bytes); });
  c.Gauge("load_bandwidth_bytes_per_second", "Rate of recent loads.",
          [](S, M m) { return m.load_bandwidth.bytes_per_second(); });
  c.Counter("hits_total", "Forms asked for and loaded.", [](S, M m) { return Of(m.hits); });
  c.Counter("misses_total", "Forms asked for and not loaded.", [](S, M m) { return Of(m.misses); });
  c.Counter("late_total", "Of these, those that did not come in time.",
            [](S, M m) { return Of(m.late); });
  c.Counter("loaded_bytes_total", "Bytes loaded.", [](S, M m) { return Of(m.loaded_bytes); });
  c.Counter("stored_bytes_total", "Bytes offered and kept.",
            [](S, M m) { return Of(m.stored_bytes); });
  c.Counter("store_failures_total", "Calls that kept nothing, or not in time.",
            [](S, M m) { return Of(m.store_failures); });
  c.Counter("cancelled_total", "Forms asked for, and stores, that the caller gave up on.",
            [](S, M m) { return Of(m.cancelled); });
  c.Counter("evicted_segments_total", "Segments evicted by the tier.",
            [](S s, M) { return Of(s.evicted_segments); });
  c.Counter("evicted_bytes_total", "Bytes of these.", [](S s, M) { return Of(s.evicted_bytes); });
  c.Counter("expired_segments_total", "Segments whose time (ttl) was over.",
            [](S s, M) { return Of(s.expired_segments); });
  c.Counter("damaged_records_total", "Records found damaged and dropped.",
            [](S s, M) { return Of(s.damaged_records); });
  c.Counter("write_errors_total", "Writes that failed.", [](S s, M) { return Of(s.write_errors); });
  c.Counter("read_errors_total", "Reads that failed.", [](S s, M) { return Of(s.read_errors); });
  c.Histogram("load_seconds", "How long loads took.",
              [](M m) -> const LatencyHistogram& { return m.load_latency; });
  c.Histogram("store_seconds", "How long stores took, until they were durable.",
              [](M m) -> const LatencyHistogram& { return m.store_latency; });
  c.Histogram("overrun_seconds", "How long calls of the tier went on for which nobody waited.",
              [](M m) -> const LatencyHistogram& { return m.overrun; });
  return c.Take();
}

}  // namespace fourierkv
