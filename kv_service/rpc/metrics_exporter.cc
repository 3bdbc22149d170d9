#include "kv_service/rpc/metrics_exporter.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/rpc/heap.h"
#include "kv_service/rpc/redis_client_metrics.h"
#include "kv_service/rpc/tier_metrics.h"

namespace fourierkv {
namespace {

prometheus::MetricFamily Family(const char* name, const char* help, prometheus::MetricType type,
                                double value) {
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return {absl::StrCat("fourierkv_", name), help, type, {std::move(metric)}};
}

// The core's counters as they are now: nothing is counted twice.
std::vector<prometheus::MetricFamily> Collect(const ServiceCore& core) {
  const StoreMetrics& m = *core.metrics;
  const StoreStats stats = core.store.Stats();
  std::vector<prometheus::MetricFamily> families;
  const auto counter = [&](const char* name, const char* help, double value) {
    families.push_back(Family(name, help, prometheus::MetricType::Counter, value));
  };
  const auto gauge = [&](const char* name, const char* help, double value) {
    families.push_back(Family(name, help, prometheus::MetricType::Gauge, value));
  };
  const auto of = [](const StoreMetrics::Counter& c) { return static_cast<double>(c.load()); };

  gauge("memory_budget_bytes", "Byte budget of the memory tier.", core.budget->limit());
  gauge("memory_used_bytes", "Bytes charged to the budget.", core.budget->used());
  const HeapStats heap = ReadHeap();
  gauge("heap_allocated_bytes", "Memory that the whole process has allocated.",
        static_cast<double>(heap.allocated_bytes));
  gauge("heap_held_bytes", "Of the kernel: that, and what waits to be allocated again.",
        static_cast<double>(heap.held_bytes));
  counter("memory_refusals_total", "Reservations refused for lack of memory.",
          core.budget->refusals());
  gauge("segments", "Stored segments.", stats.segments);
  for (const SegmentForm form : kHeldForms) {
    gauge(absl::StrCat(FormName(form), "_bytes").c_str(),
          absl::StrCat("Bytes of ", FormName(form), " forms.").c_str(), stats.forms[form].bytes);
  }
  gauge("leases", "Leases held.", stats.leases);
  gauge("open_puts", "Puts in progress.", core.puts.running());
  const WorkGate::Stats gate = core.gate.stats();
  gauge("calls", "Calls of the store in progress.", gate.calls);
  gauge("calls_working", "Of these, with a place to work.", gate.working);
  gauge("calls_waiting", "Of these, waiting for one.", gate.waiting);
  gauge("calls_outside", "Calls beyond --max-calls, waiting for room.", gate.outside);
  counter("calls_refused_busy_total", "Calls refused since they would have been served late.",
          static_cast<double>(gate.refused_busy));
  counter("calls_refused_many_total", "Calls refused beyond --max-calls.",
          static_cast<double>(gate.refused_calls));
  gauge("uptime_seconds", "Seconds since the start.",
        absl::ToDoubleSeconds(absl::Now() - core.started));
  gauge("fetch_bandwidth_bytes_per_second", "Rate of recent fetches.",
        core.fetch_bandwidth.bytes_per_second());

  counter("match_hits_total", "Segments asked for by MatchPrefix and stored.", of(m.match_hits));
  counter("match_misses_total", "Segments asked for by MatchPrefix and not matched.",
          of(m.match_misses));
  counter("read_hits_total", "Segments found in a wanted form.", of(m.read_hits));
  counter("read_misses_total", "Segments not found in a wanted form.", of(m.read_misses));
  counter("received_bytes_total", "Payload received by puts.", of(m.bytes_in));
  counter("sent_bytes_total", "Blobs handed to fetches.", of(m.bytes_out));
  counter("puts_begun_total", "Puts begun.", of(m.puts_begun));
  counter("puts_committed_total", "Puts committed.", of(m.puts_committed));
  counter("puts_aborted_total", "Puts that ended without a commit.", of(m.puts_aborted));
  counter("segments_stored_total", "Segments stored.", of(m.segments_stored));
  counter("segments_deduplicated_total", "Segments put that were stored already.",
          of(m.segments_deduplicated));
  counter("segments_deleted_total", "Segments deleted on request.", of(m.segments_deleted));
  counter("evicted_segments_total", "Segments evicted.", of(m.evicted_segments));
  counter("evicted_exact_forms_total",
          "Exact or lossless forms evicted while the compressed one stayed.",
          of(m.evicted_exact_forms));
  counter("evicted_bytes_total", "Bytes evicted.", of(m.evicted_bytes));
  counter("leases_granted_total", "Leases granted.", of(m.leases_granted));
  counter("leases_expired_total", "Leases that ran out.", of(m.leases_expired));
  counter("segments_expired_total", "Segments whose time (ttl) was over.", of(m.segments_expired));
  counter("encoded_dense_bytes_total", "Dense bytes encoded.", of(m.encoded_dense_bytes));
  counter("encode_seconds_total", "Time spent encoding.", of(m.encode_nanoseconds) * 1e-9);
  counter("decoded_dense_bytes_total", "Dense bytes decoded.", of(m.decoded_dense_bytes));
  counter("decode_seconds_total", "Time spent decoding.", of(m.decode_nanoseconds) * 1e-9);
  counter("lossless_encoded_dense_bytes_total", "Dense bytes made lossless.",
          of(m.lossless_encoded_dense_bytes));
  counter("lossless_encode_seconds_total", "Time spent on that.",
          of(m.lossless_encode_nanoseconds) * 1e-9);
  counter("lossless_decoded_dense_bytes_total", "Dense bytes made of lossless ones.",
          of(m.lossless_decoded_dense_bytes));
  counter("lossless_decode_seconds_total", "Time spent on that.",
          of(m.lossless_decode_nanoseconds) * 1e-9);
  counter("archive_encoded_dense_bytes_total", "Dense bytes archived.",
          of(m.archive_encoded_dense_bytes));
  counter("archive_encode_seconds_total", "Time one core spent on that.",
          of(m.archive_encode_nanoseconds) * 1e-9);
  counter("archive_decoded_dense_bytes_total", "Dense bytes made of archived ones.",
          of(m.archive_decoded_dense_bytes));
  counter("archive_decode_seconds_total", "Time one core spent on that.",
          of(m.archive_decode_nanoseconds) * 1e-9);
  counter("error_bound_fallbacks_total",
          "Segments sent in another form because of the fetch's error bound.",
          of(m.error_bound_fallbacks));
  counter("error_bound_misses_total", "Segments missing because of the fetch's error bound.",
          of(m.error_bound_misses));
  counter("compacted_on_demand_total", "Segments encoded because a fetch asked.",
          of(m.compacted_on_demand));
  counter("corrupt_blobs_total", "Blobs found damaged and dropped.", of(m.corrupt_blobs));
  counter("chunk_checksum_errors_total", "Chunks refused for their checksum.",
          of(m.chunk_checksum_errors));
  const WriteBack::Stats behind = core.tiers.write_back();
  gauge("write_back_queued_bytes", "Bytes still to be written to tiers behind answers.",
        behind.queued_bytes);
  counter("write_back_written_segments_total", "Segments written to tiers behind answers.",
          behind.written_segments);
  counter("write_back_dropped_segments_total",
          "Segments not written for lack of room in the queue.", behind.dropped_segments);
  counter("write_back_failed_segments_total", "Segments not written because the tier failed.",
          behind.failed_segments);
  counter("events_total", "Events told to followers, or kept for them.", core.events.latest());
  gauge("event_log_events", "Events that can be replayed.", core.events.size());
  gauge("event_log_capacity_events", "The most of them (--event-log).", core.events.capacity());
  prometheus::MetricFamily overrun{"fourierkv_call_overrun_seconds",
                                   "How long work went on for calls that were cancelled or late.",
                                   prometheus::MetricType::Histogram,
                                   {{}}};
  FillHistogram(core.overrun, overrun.metric.front());
  families.push_back(std::move(overrun));
  for (prometheus::MetricFamily& family : CollectTiers(core.tiers)) {
    families.push_back(std::move(family));
  }
  for (prometheus::MetricFamily& family : CollectRedisClients(core.tiers)) {
    families.push_back(std::move(family));
  }
  return families;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsExporter>> MetricsExporter::Start(const std::string& listen,
                                                                        const ServiceCore* core) {
  absl::StatusOr<std::unique_ptr<TextHttpServer>> server =
      TextHttpServer::Start(listen, "/metrics", "text/plain; version=0.0.4; charset=utf-8", [core] {
        std::ostringstream text;
        prometheus::TextSerializer().Serialize(text, Collect(*core));
        return text.str();
      });
  if (!server.ok()) {
    return absl::Status(
        server.status().code(),
        absl::StrCat("metrics: ", server.status().message(),
                     "; choose another address with --metrics, or none with --metrics \"\""));
  }
  return std::unique_ptr<MetricsExporter>(new MetricsExporter(*std::move(server)));
}

}  // namespace fourierkv
