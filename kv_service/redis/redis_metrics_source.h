// Whose Redis client counts what it does.

#pragma once

#include "kv_service/redis/redis_metrics.h"

namespace fourierkv {

// For a tier that has a client, beside what every tier has.
class RedisMetricsSource {
 public:
  virtual ~RedisMetricsSource() = default;
  virtual const RedisMetrics& redis_metrics() const = 0;
};

}  // namespace fourierkv
