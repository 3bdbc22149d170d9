#include <nlohmann/json.hpp>

#include "clients/loadtest/load_report.h"

namespace fourierkv::loadtest {
namespace {

using Json = nlohmann::ordered_json;

double Rate(uint64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

Json LatencyJson(const LatencyHistogram& h) {
  const auto ms = [](int64_t ns) { return 1e-6 * static_cast<double>(ns); };
  return {{"count", h.count()},
          {"min", ms(h.min())},
          {"mean", 1e-6 * h.mean()},
          {"p50", ms(h.Quantile(0.5))},
          {"p90", ms(h.Quantile(0.9))},
          {"p99", ms(h.Quantile(0.99))},
          {"p99_9", ms(h.Quantile(0.999))},
          {"max", ms(h.max())}};
}

Json BucketsJson(const LatencyHistogram& h) {
  Json buckets = Json::array();
  h.ForEach([&](int64_t lowest, int64_t highest, uint64_t count) {
    buckets.push_back(Json::array({lowest, highest, count}));
  });
  return buckets;
}

Json KindJson(const LoadReport& r, OpKind kind) {
  const auto k = static_cast<size_t>(kind);
  const KindTotals& t = r.totals.kinds[k];
  Json errors = Json::object();
  for (const auto& [code, error] : t.errors) {
    errors[absl::StatusCodeToString(code)] = {{"count", error.count},
                                              {"first_message", error.first_message}};
  }
  Json json = {{"offered", r.offered[k]},
               {"sent", t.sent},
               {"succeeded", t.succeeded},
               {"failed", t.failed()},
               {"abandoned", t.abandoned},
               {"offered_per_second", Rate(r.offered[k], r.seconds)},
               {"achieved_per_second", Rate(r.completed[k], r.seconds)},
               {"latency_ms", LatencyJson(t.latency)},
               {"errors", errors}};
  if (kind == OpKind::kPut) {
    json["stored_segments"] = t.sum.stored_segments;
    json["deduplicated_segments"] = t.sum.deduplicated_segments;
  } else {
    json["asked_tokens"] = t.sum.asked_tokens;
    json["hit_tokens"] = t.sum.hit_tokens;
  }
  if (kind == OpKind::kGet) {
    Json missing = Json::object();
    for (int reason = 1; reason < kMissingReasons; ++reason) {
      missing[v1::MissingReason_Name(static_cast<v1::MissingReason>(reason))] =
          t.sum.missing[reason];
    }
    json["missing_segments"] = missing;
  }
  json["histogram_ns"] = BucketsJson(t.latency);
  return json;
}

Json OptionsJson(const LoadOptions& o) {
  Json json = {{"server", o.server},
               {"connections", o.connections},
               {"concurrency", o.concurrency},
               {"senders", o.senders},
               {"duration_seconds", o.duration_seconds},
               {"warmup_seconds", o.warmup_seconds},
               {"deadline_seconds", o.deadline_seconds},
               {"mix", {{"put", o.mix.put}, {"get", o.mix.get}, {"match", o.mix.match}}},
               {"population", o.population},
               {"value_tokens", o.value_tokens},
               {"segment_tokens", o.segment_tokens},
               {"layers", o.geometry.layers},
               {"kv_heads", o.geometry.kv_heads},
               {"head_dim", o.geometry.head_dim},
               {"profile", o.profile.has_value() ? Json(o.profile->name) : Json()},
               {"profile_id", o.profile.has_value() ? Json(o.profile->Id().ToHex()) : Json()},
               {"payload", FormName(o.payload)},
               {"fetch", FormName(o.fetch)},
               {"zipf", o.zipf},
               {"prefix_share", o.prefix_share},
               {"prefix_groups", o.prefix_groups},
               {"new_puts", o.new_puts},
               {"fill", o.fill},
               {"match_by", o.match_by_keys ? "keys" : "tokens"},
               {"verify", o.verify},
               {"seed", o.seed}};
  return json;
}

}  // namespace

std::string ReportJson(const LoadReport& r) {
  const double s = r.seconds;
  Json loop = {{"kind", r.options.closed_loop ? "closed" : "open"}};
  if (!r.options.closed_loop) {
    loop["rate"] = r.options.rate;
    loop["arrival"] = r.options.arrival == ArrivalProcess::kConstant ? "constant" : "poisson";
  }
  Json operations = Json::object();
  for (const OpKind kind : kOpKinds) operations[OpName(kind)] = KindJson(r, kind);
  Json json = {{"schema", "fourierkv-loadtest/1"},
               {"version", FOURIERKV_VERSION},
               {"command_line", r.command_line},
               {"server", r.server.has_value()
                              ? Json{{"version", r.server->version}, {"backend", r.server->backend}}
                              : Json()},
               {"loop", loop},
               {"options", OptionsJson(r.options)},
               {"interrupted", r.interrupted},
               {"exit_code", r.exit_code()},
               {"fill", {{"seconds", r.fill_seconds}, {"stored_segments", r.filled_segments}}},
               {"measured_seconds", s},
               {"offered_per_second", Rate(r.sum_offered(), s)},
               {"sent_per_second", Rate(r.sent(), s)},
               {"achieved_per_second", Rate(r.sum_completed(), s)},
               {"failed", r.failed()},
               {"wire_bytes", {{"sent", r.bytes_sent}, {"received", r.bytes_received}}},
               {"dense_equivalent_bytes", {{"sent", r.dense_sent}, {"received", r.dense_received}}},
               {"operations", operations}};
  json["generator"] = {{"unsent", r.unsent},
                       {"waited_for_slot", r.totals.waited},
                       {"late_ms", LatencyJson(r.totals.lag)},
                       {"cpu_seconds", r.cpu_seconds},
                       {"note", r.generator_fault()}};
  json["verify"] = {{"bytes", r.totals.kinds[static_cast<size_t>(OpKind::kGet)].sum.verified_bytes},
                    {"wrong", r.totals.wrong},
                    {"messages", r.totals.wrong_messages}};
  Json outside = Json::object();
  for (const auto& [code, count] : r.totals.failures) {
    outside[absl::StatusCodeToString(code)] = count;
  }
  json["failures_in_and_outside_window"] = outside;
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace fourierkv::loadtest
