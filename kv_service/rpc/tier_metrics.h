// What /metrics says of the tiers beneath memory.

#pragma once

#include <prometheus/metric_family.h>

#include <vector>

#include "kv_service/core/tiered_store.h"

namespace fourierkv {

// One family each, with a label `tier`.
std::vector<prometheus::MetricFamily> CollectTiers(const TieredStore& tiers);

}  // namespace fourierkv
