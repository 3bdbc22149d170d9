#include "kv_service/rpc/redis_client_metrics.h"

#include <string>
#include <utility>

#include "kv_service/redis/redis_metrics_source.h"

namespace fourierkv {
namespace {

struct Row {
  const char* name;
  const char* help;
  RedisMetrics::Counter RedisMetrics::*counter;
};

constexpr Row kRows[] = {
    {"commands_total", "Commands sent, retries included.", &RedisMetrics::commands},
    {"connects_total", "Connections made.", &RedisMetrics::connects},
    {"connect_failures_total", "Connections that could not be made.",
     &RedisMetrics::connect_failures},
    {"broken_connections_total", "Connections that failed while in use.",
     &RedisMetrics::broken_connections},
    {"refusals_total", "Commands not sent because their node's breaker was open.",
     &RedisMetrics::refusals},
    {"deadlines_exceeded_total", "Commands not answered in time.",
     &RedisMetrics::deadlines_exceeded},
    {"moved_total", "MOVED redirections followed.", &RedisMetrics::moved},
    {"asked_total", "ASK redirections followed.", &RedisMetrics::asked},
    {"retries_total", "Commands sent again.", &RedisMetrics::retries},
    {"topology_reads_total", "Times the cluster was asked which node has which slots.",
     &RedisMetrics::topology_reads},
    {"topology_failures_total", "Times no node told.", &RedisMetrics::topology_failures},
};

}  // namespace

std::vector<prometheus::MetricFamily> CollectRedisClients(const TieredStore& tiers) {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& runner : tiers.tiers()) {
    const auto* const source = dynamic_cast<const RedisMetricsSource*>(&runner->tier());
    if (source == nullptr) continue;
    for (const Row& row : kRows) {
      prometheus::ClientMetric metric;
      metric.label.push_back({"tier", std::string(runner->tier().name())});
      metric.counter.value = static_cast<double>((source->redis_metrics().*row.counter).load());
      families.push_back({std::string("fourierkv_redis_") + row.name,
                          row.help,
                          prometheus::MetricType::Counter,
                          {std::move(metric)}});
    }
  }
  return families;
}

}  // namespace fourierkv
