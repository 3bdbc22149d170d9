#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "clients/demo/demo_run.h"

namespace fourierkv {
namespace {

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + 1e-9 * duration.nanos();
}

double TokensPerSecond(const v1::GenerateResult& result) {
  const double seconds = Seconds(result.decode_time());
  // The first token comes out of the prompt's forward pass, before decode time begins.
  return seconds > 0 ? (result.new_tokens() - 1) / seconds : 0;
}

double EncodeGigabytesPerSecond(const v1::PrefillResult& result) {
  const double seconds = Seconds(result.encode_time());
  return seconds > 0 ? static_cast<double>(result.encoded_dense_bytes()) / seconds * 1e-9 : 0;
}

int64_t CacheBytes(const v1::GenerateResult& result) {
  return static_cast<int64_t>(result.cache_exact_bytes() + result.cache_compact_bytes());
}

std::string Megabytes(double bytes) { return absl::StrFormat("%.2f MB", bytes * 1e-6); }

void AddRow(std::string& out, const char* what, const std::string& dense,
            const std::string& compact) {
  absl::StrAppendFormat(&out, "  %-44s %14s %14s\n", what, dense, compact);
}

nlohmann::json ModeJson(const DemoMode& mode) {
  return {{"prefill_seconds", Seconds(mode.prefill.total_time())},
          {"put_payload_bytes", mode.prefill.payload_bytes_sent()},
          {"server_bytes", mode.server_bytes},
          {"encode_gb_per_second", EncodeGigabytesPerSecond(mode.prefill)},
          {"max_relative_error", mode.prefill.max_relative_error()},
          {"second_put_payload_bytes", mode.second_prefill.payload_bytes_sent()},
          {"second_put_computed_tokens", mode.second_prefill.computed_tokens()},
          {"branch_reused_tokens", mode.branched_prefill.reused_tokens()},
          {"branch_computed_tokens", mode.branched_prefill.computed_tokens()},
          {"branch_put_payload_bytes", mode.branched_prefill.payload_bytes_sent()},
          {"median_fetched_bytes", mode.median_fetched_bytes},
          {"median_time_to_first_token_seconds", mode.median_ttft_seconds},
          {"tokens_per_second", TokensPerSecond(mode.generation)},
          {"cache_tokens", mode.generation.prompt_tokens() + mode.generation.new_tokens() - 1},
          {"cache_exact_bytes", mode.generation.cache_exact_bytes()},
          {"cache_compact_bytes", mode.generation.cache_compact_bytes()},
          {"cache_dense_equivalent_bytes", mode.generation.cache_dense_equivalent_bytes()},
          {"sealed_segments", mode.generation.sealed_segments()}};
}

}  // namespace

std::string FormatReport(const DemoReport& report) {
  std::string out = "\n  question                            truth    dense    compact\n";
  for (const DemoAnswer& answer : report.answers) {
    absl::StrAppendFormat(&out, "  magic number for %s (at %6d)  %s  %-8s %-8s %s\n",
                          answer.needle.name, answer.needle.position, answer.needle.number,
                          answer.dense, answer.compact, answer.right() ? "ok" : "WRONG");
  }
  absl::StrAppendFormat(&out, "  %d of %d questions right with both caches\n\n",
                        report.right_answers(), report.answers.size());

  const DemoMode& d = report.dense;
  const DemoMode& c = report.compact;
  const auto megabytes = [](double bytes) { return Megabytes(bytes); };
  AddRow(out, absl::StrFormat("document of %d tokens", report.document_tokens).c_str(), "dense",
         "compact");
  AddRow(out, "decoder's cache, sink, window, headers counted", megabytes(CacheBytes(d.generation)),
         megabytes(CacheBytes(c.generation)));
  AddRow(out, "  ratio", "1.00 x", absl::StrFormat("%.2f x", report.ratio()));
  AddRow(out, "held by the server", megabytes(d.server_bytes), megabytes(c.server_bytes));
  AddRow(out, "sent to the server by prefill", megabytes(d.prefill.payload_bytes_sent()),
         megabytes(c.prefill.payload_bytes_sent()));
  AddRow(out, "fetched by decode for a question (median)", megabytes(d.median_fetched_bytes),
         megabytes(c.median_fetched_bytes));
  AddRow(out, "encoding on the server", "-",
         absl::StrFormat("%.2f GB/s", EncodeGigabytesPerSecond(c.prefill)));
  AddRow(out, "prefill", absl::StrFormat("%.2f s", Seconds(d.prefill.total_time())),
         absl::StrFormat("%.2f s", Seconds(c.prefill.total_time())));
  AddRow(out, "time to first token of a question (median)",
         absl::StrFormat("%.0f ms", d.median_ttft_seconds * 1e3),
         absl::StrFormat("%.0f ms", c.median_ttft_seconds * 1e3));
  AddRow(out, "decoding", absl::StrFormat("%.0f tokens/s", TokensPerSecond(d.generation)),
         absl::StrFormat("%.0f tokens/s", TokensPerSecond(c.generation)));
  AddRow(out, "the same document again: payload sent",
         absl::StrFormat("%d B", d.second_prefill.payload_bytes_sent()),
         absl::StrFormat("%d B", c.second_prefill.payload_bytes_sent()));
  AddRow(out,
         absl::StrFormat("a prompt sharing %d tokens: reused", report.branch_shared_tokens).c_str(),
         absl::StrFormat("%d", d.branched_prefill.reused_tokens()),
         absl::StrFormat("%d", c.branched_prefill.reused_tokens()));
  AddRow(out, "  computed anew", absl::StrFormat("%d", d.branched_prefill.computed_tokens()),
         absl::StrFormat("%d", c.branched_prefill.computed_tokens()));
  AddRow(out, "  payload sent", megabytes(d.branched_prefill.payload_bytes_sent()),
         megabytes(c.branched_prefill.payload_bytes_sent()));
  return out;
}

std::string ReportJson(const DemoReport& report) {
  nlohmann::json json = {{"document_tokens", report.document_tokens},
                         {"questions", report.answers.size()},
                         {"right", report.right_answers()},
                         {"ratio", report.ratio()},
                         {"branch_shared_tokens", report.branch_shared_tokens},
                         {"dense", ModeJson(report.dense)},
                         {"compact", ModeJson(report.compact)}};
  for (const DemoAnswer& answer : report.answers) {
    json["answers"].push_back({{"name", answer.needle.name},
                               {"position", answer.needle.position},
                               {"truth", answer.needle.number},
                               {"dense", answer.dense},
                               {"compact", answer.compact}});
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace fourierkv
