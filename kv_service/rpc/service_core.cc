#include "kv_service/rpc/service_core.h"

#include <openssl/rand.h>

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "compute/base/structured_log.h"

namespace fourierkv {
namespace {

void LogCorruption(const BlockKey& key, SegmentForm form, int layer, Part part,
                   const absl::Status& status) {
  Log(LogLevel::kError, "segment.corrupt",
      {{"key", key.ToHex()},
       {"form", FormName(form)},
       {"layer", layer},
       {"part", PartName(part)},
       {"status", status}});
}

// One waits for memory or for the kernel while another one computes.
int DefaultPlaces() {
  return 2 * std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::array<uint8_t, 32> RandomBytes() {
  std::array<uint8_t, 32> bytes;
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) std::abort();
  return bytes;
}

}  // namespace

ServiceCore::ServiceCore(std::unique_ptr<ComputeBackend> compute_backend,
                         const ServiceLimits& service_limits)
    : limits(service_limits),
      live{LiveDuration(limits.max_lease), LiveDuration(limits.max_pin),
           LiveDuration(limits.max_ttl)},
      backend(std::move(compute_backend)),
      metrics(std::make_shared<StoreMetrics>()),
      budget(MemoryBudget::Create("segment memory (--memory)", limits.memory_bytes)),
      scratch(MemoryBudget::Create("scratch memory (--scratch-memory)", limits.scratch_bytes)),
      events(limits.event_log),
      removals(limits.removal_log, &events),
      store(budget, metrics, &absl::Now, &removals),
      namespaces(&profiles),
      tiers(&store, {}, {.observer = &events}),
      puts(&store, backend.get(), limits.max_puts, &tiers),
      reader(&store, backend.get(), scratch, LogCorruption, &tiers),
      gate({.places = limits.places > 0 ? limits.places : DefaultPlaces(),
            .max_calls = limits.max_calls,
            .max_outside = limits.max_outside()}),
      lease_secret(RandomBytes()),
      started(absl::Now()),
      sweeper([this] { return tiers.Expire(); }, limits.sweep) {}

}  // namespace fourierkv
