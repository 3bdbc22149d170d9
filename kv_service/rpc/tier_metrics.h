// What /metrics says of the tiers beneath memory.

#pragma once

#include <prometheus/metric_family.h>

#include <vector>

#include "kv_service/core/tiered_store.h"

namespace fourierkv {

// Adds what was counted to a metric of type histogram.
void FillHistogram(const LatencyHistogram& from, prometheus::ClientMetric& to);

// One family each, with a label `tier`.
std::vector<prometheus::MetricFamily> CollectTiers(const TieredStore& tiers);

}  // namespace fourierkv
