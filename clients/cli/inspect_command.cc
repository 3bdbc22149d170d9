// fourierkv inspect: what a server holds, how big it is, in which form and with which error.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "clients/cli/commands.h"
#include "clients/cpp/kv_client.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string server;
  ChannelOptions channel;
  bool segments = false;
  uint32_t limit = 1000;
  std::string output = "text";
};

std::string ShortHex(const std::string& raw) { return absl::BytesToHexString(raw).substr(0, 12); }

const char* FormText(v1::SegmentForm form) { return FormName(static_cast<SegmentForm>(form)); }

// Totals over the segments of one namespace.
struct NamespaceTotals {
  std::string profile_id;
  int64_t segments = 0;
  int64_t dense_bytes = 0;
  int64_t exact_bytes = 0;
  int64_t lossless_bytes = 0;
  int64_t compact_bytes = 0;
  int64_t archived_bytes = 0;
  int64_t compacted_dense_bytes = 0;  // dense bytes of segments that are held compact
  double error_sum = 0;
  float max_error = 0;
  int64_t compact_segments = 0;
};

struct Report {
  v1::GetStatsResponse stats;
  std::map<std::string, std::string> profile_names;   // by id
  std::map<std::string, NamespaceTotals> namespaces;  // by key
  std::vector<v1::StoredSegment> segments;
};

absl::StatusOr<Report> Collect(const Flags& flags) {
  absl::StatusOr<std::unique_ptr<KvClient>> client =
      KvClient::Connect(flags.server, absl::Seconds(5), flags.channel);
  if (!client.ok()) return client.status();
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  Report report;
  absl::StatusOr<v1::GetStatsResponse> stats = (*client)->Stats(deadline);
  if (!stats.ok()) return stats.status();
  report.stats = *std::move(stats);
  absl::StatusOr<v1::ListProfilesResponse> profiles = (*client)->ListProfiles(deadline);
  if (!profiles.ok()) return profiles.status();
  for (const v1::ProfileSummary& profile : profiles->profiles()) {
    report.profile_names[profile.profile_id()] =
        absl::StrFormat("%s (%.2f bits/element)", profile.name(), profile.bits_per_element());
  }
  absl::StatusOr<std::vector<v1::StoredSegment>> segments = (*client)->ListSegments(0, deadline);
  if (!segments.ok()) return segments.status();
  for (const v1::StoredSegment& segment : *segments) {
    NamespaceTotals& totals = report.namespaces[segment.namespace_key()];
    totals.profile_id = segment.profile_id();
    ++totals.segments;
    totals.dense_bytes += segment.dense_bytes();
    for (const v1::HeldForm& form : segment.forms()) {
      if (form.form() == v1::SEGMENT_FORM_COMPACT) {
        totals.compact_bytes += form.bytes();
        totals.compacted_dense_bytes += segment.dense_bytes();
        totals.error_sum += form.mean_relative_error();
        totals.max_error = std::max(totals.max_error, form.max_relative_error());
        ++totals.compact_segments;
      } else if (form.form() == v1::SEGMENT_FORM_LOSSLESS) {
        totals.lossless_bytes += form.bytes();
      } else if (form.form() == v1::SEGMENT_FORM_ARCHIVED) {
        totals.archived_bytes += form.bytes();
      } else {
        totals.exact_bytes += form.bytes();
      }
    }
  }
  if (segments->size() > flags.limit) segments->resize(flags.limit);
  report.segments = *std::move(segments);
  return report;
}

std::string ProfileText(const Report& report, const std::string& id) {
  if (id.empty()) return "none: exact only";
  const auto it = report.profile_names.find(id);
  return it == report.profile_names.end() ? ShortHex(id) : it->second;
}

void PrintText(const Report& report, const Flags& flags) {
  const v1::GetStatsResponse& s = report.stats;
  std::printf(
      "%s",
      absl::StrFormat(
          "version %s, backend %s, up %s\n"
          "memory %.2f of %.2f MB used; %d segments, %.2f MB exact, %.2f MB "
          "lossless, %.2f MB compact, %.2f MB archived; "
          "%d leases, %d puts open\n"
          "received %.2f MB, sent %.2f MB; encoded %.2f MB in %.3f s; evicted %d, "
          "damaged %d\n",
          s.version(), s.backend(),
          absl::FormatDuration(absl::Trunc(FromProto(s.uptime()), absl::Seconds(1))),
          s.used_bytes() * 1e-6, s.budget_bytes() * 1e-6, s.segments(), s.exact_bytes() * 1e-6,
          s.lossless_bytes() * 1e-6, s.compact_bytes() * 1e-6, s.archived_bytes() * 1e-6,
          s.leases(), s.open_puts(), s.bytes_received() * 1e-6, s.bytes_sent() * 1e-6,
          s.encoded_dense_bytes() * 1e-6, absl::ToDoubleSeconds(FromProto(s.encode_time())),
          s.evicted_segments(), s.corrupt_segments())
          .c_str());
  for (const auto& [key, t] : report.namespaces) {
    std::printf("%s",
                absl::StrFormat("\nnamespace %s, profile %s\n"
                                "  %d segments, %.2f MB if dense; exact %.2f MB, lossless %.2f MB, "
                                "archived %.2f MB, compact %.2f MB",
                                ShortHex(key), ProfileText(report, t.profile_id), t.segments,
                                t.dense_bytes * 1e-6, t.exact_bytes * 1e-6, t.lossless_bytes * 1e-6,
                                t.archived_bytes * 1e-6, t.compact_bytes * 1e-6)
                    .c_str());
    if (t.compact_segments > 0) {
      std::printf("%s",
                  absl::StrFormat(" (%.2f x), relative error mean %.3f, max %.3f",
                                  static_cast<double>(t.compacted_dense_bytes) / t.compact_bytes,
                                  t.error_sum / t.compact_segments, t.max_error)
                      .c_str());
    }
    std::printf("\n");
  }
  if (!flags.segments) return;
  std::printf("\n%-14s %-14s %6s %7s %7s  %s\n", "segment", "namespace", "index", "tokens",
              "leases", "forms");
  for (const v1::StoredSegment& segment : report.segments) {
    std::string forms;
    for (const v1::HeldForm& form : segment.forms()) {
      absl::StrAppendFormat(&forms, "%s %d B", FormText(form.form()), form.bytes());
      if (!IsExactData(static_cast<SegmentForm>(form.form()))) {
        absl::StrAppendFormat(&forms, " (error %.3f, max %.3f)", form.mean_relative_error(),
                              form.max_relative_error());
      }
      forms += "  ";
    }
    std::printf("%-14s %-14s %6llu %7u %7u  %s\n", ShortHex(segment.block_key()).c_str(),
                ShortHex(segment.namespace_key()).c_str(),
                static_cast<unsigned long long>(segment.index()), segment.tokens(),
                segment.leases(), forms.c_str());
  }
}

void PrintJson(const Report& report, const Flags& flags) {
  const v1::GetStatsResponse& s = report.stats;
  nlohmann::json json = {{"version", s.version()},
                         {"backend", s.backend()},
                         {"uptime_seconds", absl::ToDoubleSeconds(FromProto(s.uptime()))},
                         {"budget_bytes", s.budget_bytes()},
                         {"used_bytes", s.used_bytes()},
                         {"segments", s.segments()},
                         {"exact_bytes", s.exact_bytes()},
                         {"lossless_bytes", s.lossless_bytes()},
                         {"compact_bytes", s.compact_bytes()},
                         {"archived_bytes", s.archived_bytes()},
                         {"leases", s.leases()},
                         {"open_puts", s.open_puts()},
                         {"bytes_received", s.bytes_received()},
                         {"bytes_sent", s.bytes_sent()},
                         {"evicted_segments", s.evicted_segments()},
                         {"corrupt_segments", s.corrupt_segments()},
                         {"encoded_dense_bytes", s.encoded_dense_bytes()},
                         {"encode_seconds", absl::ToDoubleSeconds(FromProto(s.encode_time()))},
                         {"namespaces", nlohmann::json::array()}};
  for (const auto& [key, t] : report.namespaces) {
    json["namespaces"].push_back({{"key", absl::BytesToHexString(key)},
                                  {"profile_id", absl::BytesToHexString(t.profile_id)},
                                  {"segments", t.segments},
                                  {"dense_bytes", t.dense_bytes},
                                  {"exact_bytes", t.exact_bytes},
                                  {"lossless_bytes", t.lossless_bytes},
                                  {"compact_bytes", t.compact_bytes},
                                  {"archived_bytes", t.archived_bytes},
                                  {"compact_segments", t.compact_segments},
                                  {"compacted_dense_bytes", t.compacted_dense_bytes},
                                  {"max_relative_error", t.max_error}});
  }
  if (flags.segments) {
    json["segment_list"] = nlohmann::json::array();
    for (const v1::StoredSegment& segment : report.segments) {
      nlohmann::json forms = nlohmann::json::array();
      for (const v1::HeldForm& form : segment.forms()) {
        forms.push_back({{"form", FormText(form.form())},
                         {"bytes", form.bytes()},
                         {"mean_relative_error", form.mean_relative_error()},
                         {"max_relative_error", form.max_relative_error()}});
      }
      json["segment_list"].push_back(
          {{"block_key", absl::BytesToHexString(segment.block_key())},
           {"parent_key", absl::BytesToHexString(segment.parent_key())},
           {"namespace_key", absl::BytesToHexString(segment.namespace_key())},
           {"index", segment.index()},
           {"tokens", segment.tokens()},
           {"dense_bytes", segment.dense_bytes()},
           {"leases", segment.leases()},
           {"idle_seconds", absl::ToDoubleSeconds(FromProto(segment.idle_time()))},
           {"forms", std::move(forms)}});
    }
  }
  std::printf("%s\n", json.dump(2).c_str());
}

}  // namespace

void DeclareInspect(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("inspect", "What a server holds: sizes, forms, codecs, errors");
  command->add_option("--server", flags->server, "Address of fourierkv-server")->required();
  DeclareChannelFlags(*command, flags->channel);
  command->add_flag("--segments", flags->segments, "List single segments too");
  command->add_option("--limit", flags->limit, "Segments to list at most")->capture_default_str();
  command->add_option("--output", flags->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command->callback([flags, &chosen] {
    chosen = [flags]() -> absl::Status {
      absl::StatusOr<Report> report = Collect(*flags);
      if (!report.ok()) return report.status();
      flags->output == "json" ? PrintJson(*report, *flags) : PrintText(*report, *flags);
      return absl::OkStatus();
    };
  });
}

}  // namespace fourierkv
