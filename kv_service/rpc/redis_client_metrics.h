// What /metrics says of the clients of Redis.

#pragma once

#include <prometheus/metric_family.h>

#include <vector>

#include "kv_service/core/tiered_store.h"

namespace fourierkv {

// Of tiers that are a RedisMetricsSource: one family each, with a label `tier`.
std::vector<prometheus::MetricFamily> CollectRedisClients(const TieredStore& tiers);

}  // namespace fourierkv
