// Counters of a Redis client, for an exporter to read at any time.

#pragma once

#include <atomic>
#include <cstdint>

namespace fourierkv {

// All counters only grow. Relaxed atomics.
struct RedisMetrics {
  using Counter = std::atomic<uint64_t>;

  Counter commands{0};  // sent, retries included
  Counter connects{0};
  Counter connect_failures{0};
  Counter broken_connections{0};  // that failed while in use
  Counter refusals{0};            // commands not sent because their node's breaker was open
  Counter deadlines_exceeded{0};
  Counter moved{0};  // redirections followed
  Counter asked{0};
  Counter retries{0};
  Counter topology_reads{0};
  Counter topology_failures{0};

  static void Add(Counter& counter, uint64_t n) { counter.fetch_add(n, std::memory_order_relaxed); }
};

}  // namespace fourierkv
