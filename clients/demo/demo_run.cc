#include "clients/demo/demo_run.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cpp/kv_client.h"
#include "clients/cpp/worker_client.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kCallTimeout = absl::Minutes(5);
constexpr int kLongAnswerTokens = 192;
// Behind a document, which a codec profile of whole sequences must know: a question and its answer,
// or a line's end and the long answer.
constexpr int kRoomTokens = kLongAnswerTokens + 1;

absl::Time Deadline() { return absl::Now() + kCallTimeout; }

template <typename Request>
void SetTokens(const std::string& text, Request& request) {
  for (const char c : text) request.add_token_ids(static_cast<unsigned char>(c));
}

template <typename T>
T Median(std::vector<T> values) {
  if (values.empty()) return T{};
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// One cache mode's calls.
class ModeRunner {
 public:
  ModeRunner(v1::CacheMode mode, PrefillClient& prefill, DecodeClient& decode)
      : mode_(mode), prefill_(prefill), decode_(decode) {}

  absl::StatusOr<v1::PrefillResult> Prefill(const std::string& text) {
    v1::PrefillRequest request;
    SetTokens(text, request);
    request.set_cache_mode(mode_);
    request.set_max_new_tokens(kRoomTokens);
    const char* name = mode_ == v1::CACHE_MODE_EXACT ? "dense" : "compact";
    return prefill_.Prefill(request, Deadline(), [&](const v1::PrefillProgress& progress) {
      std::fprintf(stderr, "\rprefill (%s): %llu of %llu tokens ", name,
                   static_cast<unsigned long long>(progress.tokens_done()),
                   static_cast<unsigned long long>(progress.tokens_total()));
    });
  }

  // Continues document + question until the model ends the line or `max_tokens` are made.
  absl::StatusOr<std::string> Generate(const std::string& document, const std::string& question,
                                       int max_tokens, bool to_line_end,
                                       v1::GenerateResult* result) {
    v1::GenerateRequest request;
    SetTokens(document, request);
    SetTokens(question, request);
    request.set_prefilled_tokens(document.size());
    request.set_max_new_tokens(max_tokens);
    request.set_sequence_capacity(document.size() + kRoomTokens);
    if (to_line_end) {
      request.add_stop_token_ids('.');
      request.add_stop_token_ids('\n');
    }
    request.set_cache_mode(mode_);
    std::string answer;
    absl::StatusOr<v1::GenerateResult> generated = decode_.Generate(
        request, Deadline(),
        [&](const v1::GeneratedToken& token) { answer += static_cast<char>(token.token_id()); });
    if (!generated.ok()) return generated.status();
    *result = *std::move(generated);
    return answer;
  }

 private:
  v1::CacheMode mode_;
  PrefillClient& prefill_;
  DecodeClient& decode_;
};

// Bytes of everything that the service holds.
absl::StatusOr<int64_t> ServerBytes(KvClient& client) {
  absl::StatusOr<v1::GetStatsResponse> stats = client.Stats(Deadline());
  if (!stats.ok()) return stats.status();
  return static_cast<int64_t>(stats->exact_bytes() + stats->compact_bytes());
}

absl::Status Ask(ModeRunner& runner, const NeedleDocument& document, DemoMode& mode,
                 std::vector<DemoAnswer>& answers, std::string DemoAnswer::*field) {
  std::vector<double> ttft;
  std::vector<int64_t> fetched;
  for (size_t i = 0; i < document.needles.size(); ++i) {
    v1::GenerateResult result;
    absl::StatusOr<std::string> answer = runner.Generate(
        document.text, NeedleQuestion(document.needles[i]), 16, /*to_line_end=*/true, &result);
    if (!answer.ok()) return answer.status();
    answers[i].*field = *answer;
    const auto& time = result.time_to_first_token();
    ttft.push_back(static_cast<double>(time.seconds()) + 1e-9 * time.nanos());
    fetched.push_back(static_cast<int64_t>(result.payload_bytes_fetched()));
    std::fprintf(stderr, "\rquestion %zu of %zu ", i + 1, document.needles.size());
  }
  mode.median_ttft_seconds = Median(std::move(ttft));
  mode.median_fetched_bytes = Median(std::move(fetched));
  return absl::OkStatus();
}

absl::Status RunMode(ModeRunner& runner, KvClient& server, const NeedleDocument& document,
                     const std::string& branch, DemoMode& mode, std::vector<DemoAnswer>& answers,
                     std::string DemoAnswer::*field) {
  absl::StatusOr<int64_t> before = ServerBytes(server);
  if (!before.ok()) return before.status();
  absl::StatusOr<v1::PrefillResult> first = runner.Prefill(document.text);
  if (!first.ok()) return first.status();
  mode.prefill = *first;
  absl::StatusOr<int64_t> after = ServerBytes(server);
  if (!after.ok()) return after.status();
  mode.server_bytes = *after - *before;
  std::fprintf(stderr, "\n");
  if (absl::Status s = Ask(runner, document, mode, answers, field); !s.ok()) return s;
  std::fprintf(stderr, "\n");

  absl::StatusOr<v1::PrefillResult> second = runner.Prefill(document.text);
  if (!second.ok()) return second.status();
  mode.second_prefill = *second;
  absl::StatusOr<v1::PrefillResult> branched = runner.Prefill(branch);
  if (!branched.ok()) return branched.status();
  mode.branched_prefill = *branched;
  std::fprintf(stderr, "\n");
  return runner
      .Generate(document.text, "\n", kLongAnswerTokens, /*to_line_end=*/false, &mode.generation)
      .status();
}

}  // namespace

int DemoReport::right_answers() const {
  return static_cast<int>(std::count_if(answers.begin(), answers.end(),
                                        [](const DemoAnswer& answer) { return answer.right(); }));
}

double DemoReport::ratio() const {
  const auto& c = compact.generation;
  return static_cast<double>(c.cache_dense_equivalent_bytes()) /
         static_cast<double>(c.cache_exact_bytes() + c.cache_compact_bytes());
}

absl::StatusOr<DemoReport> RunDemo(const LocalStack& stack, const NeedleDocument& document) {
  absl::StatusOr<std::unique_ptr<KvClient>> server =
      KvClient::Connect(stack.server(), absl::Seconds(10));
  if (!server.ok()) return server.status();
  absl::StatusOr<std::shared_ptr<grpc::Channel>> prefill_channel =
      ConnectChannel(stack.prefill(), absl::Seconds(10));
  if (!prefill_channel.ok()) return prefill_channel.status();
  absl::StatusOr<std::shared_ptr<grpc::Channel>> decode_channel =
      ConnectChannel(stack.decode(), absl::Seconds(10));
  if (!decode_channel.ok()) return decode_channel.status();
  PrefillClient prefill(*prefill_channel);
  DecodeClient decode(*decode_channel);

  DemoReport report;
  report.document_tokens = static_cast<int64_t>(document.text.size());
  // Another prompt with the same beginning: three quarters of the document, then something else.
  report.branch_shared_tokens = report.document_tokens * 3 / 4;
  const std::string branch = absl::StrCat(
      document.text.substr(0, report.branch_shared_tokens),
      "\n\nFrom here on this prompt is another one, so only what stands before can be shared.\n");
  for (const Needle& needle : document.needles) report.answers.push_back({needle, "", ""});

  ModeRunner dense(v1::CACHE_MODE_EXACT, prefill, decode);
  if (absl::Status s = RunMode(dense, **server, document, branch, report.dense, report.answers,
                               &DemoAnswer::dense);
      !s.ok()) {
    return s;
  }
  ModeRunner compact(v1::CACHE_MODE_COMPACT, prefill, decode);
  if (absl::Status s = RunMode(compact, **server, document, branch, report.compact, report.answers,
                               &DemoAnswer::compact);
      !s.ok()) {
    return s;
  }
  return report;
}

}  // namespace fourierkv
