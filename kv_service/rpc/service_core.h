// The gRPC-free service that the RPC classes expose, wired up once.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "compute/backend/compute_backend.h"
#include "kv_service/core/bandwidth_meter.h"
#include "kv_service/core/event_log.h"
#include "kv_service/core/memory_budget.h"
#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/core/put_session.h"
#include "kv_service/core/removal_history.h"
#include "kv_service/core/segment_reader.h"
#include "kv_service/core/segment_store.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/store_sweeper.h"
#include "kv_service/core/tiered_store.h"
#include "kv_service/core/work_gate.h"
#include "kv_service/rpc/tenant_quotas.h"
#include "proto/support/access_control.h"
#include "proto/support/live_duration.h"

namespace fourierkv {

struct ServiceLimits {
  int64_t memory_bytes = int64_t{1} << 30;       // segments and puts in progress
  int64_t scratch_bytes = int64_t{1} << 28;      // forms made for a fetch and not kept
  int max_puts = 64;                             // at the same time
  int max_calls = 512;                           // of the store, at the same time
  int places = 0;                                // that work at the same time; 0: two per CPU
  absl::Duration stall = absl::Minutes(1);       // how long a client may neither send nor read
  absl::Duration max_lease = absl::Minutes(10);  // that MatchPrefix grants
  absl::Duration max_pin = absl::Hours(24);
  absl::Duration max_ttl = absl::Hours(24 * 30);  // of puts that are not kept for ever
  int max_followers = 64;                         // of events, at the same time
  int64_t event_log = int64_t{1} << 17;           // events that can be replayed
  absl::Duration sweep = absl::Seconds(1);        // how often what has expired is looked for
  int64_t removal_log = int64_t{1} << 16;         // removals that can be explained

  int max_outside() const { return max_calls / 4; }  // that wait to be among max_calls
};

// Those limits that may change while the service runs.
struct LiveLimits {
  LiveDuration max_lease;
  LiveDuration max_pin;
  LiveDuration max_ttl;
};

// Thread safe. Outlives the RPC classes.
struct ServiceCore {
  ServiceCore(std::unique_ptr<ComputeBackend> compute_backend, const ServiceLimits& service_limits);

  const ServiceLimits limits;  // as at the start
  LiveLimits live;
  std::unique_ptr<ComputeBackend> backend;
  std::shared_ptr<StoreMetrics> metrics;
  std::shared_ptr<MemoryBudget> budget;
  std::shared_ptr<MemoryBudget> scratch;
  EventLog events;
  RemovalHistory removals;  // tells `events`
  SegmentStore store;       // tells `removals`
  ProfileStore profiles;
  NamespaceDirectory namespaces;  // of `profiles`
  TieredStore tiers;              // over `store`; tiers are added before the service is served
  PutManager puts;
  SegmentReader reader;
  WorkGate gate;                   // of calls of the store
  BandwidthMeter fetch_bandwidth;  // as clients drained them
  LatencyHistogram overrun;        // of calls' work after they were over
  // Who may call what; null: calls need no token, and nobody is kept from anything. Set before the
  // service is served.
  std::shared_ptr<AccessControl> access;
  // What a tenant may take; without limits until it is set, which is before the service is served.
  std::unique_ptr<TenantQuotas> quotas = std::make_unique<TenantQuotas>();
  const std::array<uint8_t, 32> lease_secret;  // random; tenant_view.h
  absl::Time started;
  StoreSweeper sweeper;  // of `tiers`; last, since it uses them
};

}  // namespace fourierkv
