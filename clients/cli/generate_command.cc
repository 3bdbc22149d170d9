// fourierkv generate: prefill, then decode, on a running service or on one started for the
// occasion.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "clients/cli/commands.h"
#include "clients/cpp/kv_client.h"
#include "clients/cpp/worker_client.h"
#include "clients/local_stack/local_stack.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/model_config.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string model;
  std::string prompt_file;
  std::string prompt_tokens_file;
  std::vector<std::string> questions;
  std::string prefill;
  std::string decode;
  ChannelOptions channel;
  std::string profile;
  std::string cache = "compact";
  std::string exact_form = "exact";
  std::string compressed_form = "compact";
  double max_relative_error = 0;
  int recent_window = 0;
  int max_new_tokens = 64;
  std::vector<std::string> stop;
  double temperature = 0;
  double top_p = 1;
  uint64_t seed = 0;
  int threads = 0;
  std::string device = "cpu";
  double timeout_seconds = 600;
  std::string output = "text";
};

using Tokens = std::vector<int32_t>;

// The texts as tokens: bytes for byte-level models, else as the user gave them.
struct Prompt {
  bool bytes = true;
  Tokens document;
  std::vector<Tokens> questions;
};

absl::StatusOr<Prompt> ReadPrompt(const Flags& flags) {
  absl::StatusOr<ModelConfig> config = ModelConfig::FromFolder(flags.model);
  if (!config.ok()) return config.status();
  Prompt prompt;
  prompt.bytes = IsByteLevel(flags.model, *config);
  if (!flags.prompt_tokens_file.empty()) {
    absl::StatusOr<Tokens> tokens = ReadTokenFile(flags.prompt_tokens_file);
    if (!tokens.ok()) return tokens.status();
    prompt.document = *std::move(tokens);
  } else {
    if (!prompt.bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags.model,
                       " is not byte-level: tokenise the prompt yourself and give its "
                       "ids with --prompt-tokens"));
    }
    absl::StatusOr<std::string> text = ReadWholeFile(flags.prompt_file);
    if (!text.ok()) return text.status();
    prompt.document = EncodeBytes(*text);
  }
  if (prompt.document.empty()) return absl::InvalidArgumentError("the prompt is empty");
  for (const std::string& question : flags.questions) {
    if (!prompt.bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("--question is text, and ", flags.model,
                       " is not byte-level; put it into --prompt-tokens"));
    }
    prompt.questions.push_back(EncodeBytes(question));
  }
  if (prompt.questions.empty()) prompt.questions.emplace_back();
  return prompt;
}

std::string Printable(const Prompt& prompt, const Tokens& tokens) {
  return prompt.bytes ? DecodeBytes(tokens) : absl::StrJoin(tokens, " ");
}

nlohmann::json ToJson(const v1::PrefillResult& r) {
  return {{"tokens", r.tokens()},
          {"reused_tokens", r.reused_tokens()},
          {"computed_tokens", r.computed_tokens()},
          {"payload_bytes_sent", r.payload_bytes_sent()},
          {"exact_bytes_stored", r.exact_bytes()},
          {"lossless_bytes_stored", r.lossless_bytes()},
          {"compact_bytes_stored", r.compact_bytes()},
          {"archived_bytes_stored", r.archived_bytes()},
          {"bounded_segments", r.bounded_segments()},
          {"max_relative_error", r.max_relative_error()},
          {"seconds", absl::ToDoubleSeconds(FromProto(r.total_time()))}};
}

nlohmann::json ToJson(const v1::GenerateResult& r) {
  return {
      {"prompt_tokens", r.prompt_tokens()},
      {"reused_tokens", r.reused_tokens()},
      {"new_tokens", r.new_tokens()},
      {"finish_reason", r.finish_reason() == v1::FINISH_REASON_STOP ? "stop" : "length"},
      {"payload_bytes_fetched", r.payload_bytes_fetched()},
      {"time_to_first_token_seconds", absl::ToDoubleSeconds(FromProto(r.time_to_first_token()))},
      {"decode_seconds", absl::ToDoubleSeconds(FromProto(r.decode_time()))},
      {"cache_exact_bytes", r.cache_exact_bytes()},
      {"cache_compact_bytes", r.cache_compact_bytes()},
      {"cache_dense_equivalent_bytes", r.cache_dense_equivalent_bytes()},
      {"bounded_segments", r.bounded_segments()},
      {"sealed_segments", r.sealed_segments()},
      {"stored_segments", r.stored_segments()}};
}

void PrintSummary(const v1::PrefillResult& prefill, const v1::GenerateResult& last) {
  const double cache = static_cast<double>(last.cache_exact_bytes() + last.cache_compact_bytes());
  std::fprintf(stderr,
               "prefill: %llu tokens, %llu reused, %.2f MB sent, %.2f s\n"
               "decode: first token after %.0f ms, %.2f MB fetched, cache %.2f MB (%.2f x smaller "
               "than dense)\n",
               static_cast<unsigned long long>(prefill.tokens()),
               static_cast<unsigned long long>(prefill.reused_tokens()),
               static_cast<double>(prefill.payload_bytes_sent()) * 1e-6,
               absl::ToDoubleSeconds(FromProto(prefill.total_time())),
               absl::ToDoubleMilliseconds(FromProto(last.time_to_first_token())),
               static_cast<double>(last.payload_bytes_fetched()) * 1e-6, cache * 1e-6,
               static_cast<double>(last.cache_dense_equivalent_bytes()) / cache);
}

class Generation {
 public:
  Generation(const Flags& flags, Prompt prompt) : flags_(flags), prompt_(std::move(prompt)) {
    mode_ = flags.cache == "exact" ? v1::CACHE_MODE_EXACT : v1::CACHE_MODE_COMPACT;
  }

  absl::Status Run(const std::string& prefill_address, const std::string& decode_address) {
    absl::StatusOr<std::shared_ptr<grpc::Channel>> prefill =
        ConnectChannel(prefill_address, absl::Seconds(10), flags_.channel);
    if (!prefill.ok()) return prefill.status();
    absl::StatusOr<std::shared_ptr<grpc::Channel>> decode =
        ConnectChannel(decode_address, absl::Seconds(10), flags_.channel);
    if (!decode.ok()) return decode.status();
    if (absl::Status s = RunPrefill(PrefillClient(*prefill)); !s.ok()) return s;
    DecodeClient client(*decode);
    for (size_t i = 0; i < prompt_.questions.size(); ++i) {
      if (absl::Status s = Answer(client, i); !s.ok()) return s;
    }
    if (flags_.output == "json") {
      std::printf("%s\n",
                  json_.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    } else {
      PrintSummary(prefill_result_, last_);
    }
    return absl::OkStatus();
  }

 private:
  absl::Time Deadline() const { return absl::Now() + absl::Seconds(flags_.timeout_seconds); }

  absl::Status RunPrefill(PrefillClient client) {
    v1::PrefillRequest request;
    request.mutable_token_ids()->Assign(prompt_.document.begin(), prompt_.document.end());
    request.set_cache_mode(mode_);
    request.set_recent_window(flags_.recent_window);
    request.set_max_relative_error(static_cast<float>(flags_.max_relative_error));
    request.set_exact_form(flags_.exact_form == "lossless" ? v1::SEGMENT_FORM_LOSSLESS
                                                           : v1::SEGMENT_FORM_EXACT);
    request.set_compressed_form(flags_.compressed_form == "archived" ? v1::SEGMENT_FORM_ARCHIVED
                                                                     : v1::SEGMENT_FORM_COMPACT);
    size_t longest_question = 0;
    for (const Tokens& question : prompt_.questions) {
      longest_question = std::max(longest_question, question.size());
    }
    request.set_max_new_tokens(static_cast<uint32_t>(longest_question) + flags_.max_new_tokens);
    absl::StatusOr<v1::PrefillResult> result =
        client.Prefill(request, Deadline(), [](const v1::PrefillProgress& progress) {
          std::fprintf(stderr, "\rprefill: %llu of %llu tokens ",
                       static_cast<unsigned long long>(progress.tokens_done()),
                       static_cast<unsigned long long>(progress.tokens_total()));
        });
    std::fprintf(stderr, "\n");
    if (!result.ok()) return result.status();
    prefill_result_ = *std::move(result);
    json_["prefill"] = ToJson(prefill_result_);
    return absl::OkStatus();
  }

  absl::Status Answer(DecodeClient& client, size_t index) {
    v1::GenerateRequest request;
    Tokens tokens = prompt_.document;
    const Tokens& question = prompt_.questions[index];
    tokens.insert(tokens.end(), question.begin(), question.end());
    request.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    request.set_prefilled_tokens(prompt_.document.size());
    request.set_max_new_tokens(flags_.max_new_tokens);
    request.set_sequence_capacity(prefill_result_.sequence_capacity());
    for (const std::string& stop : flags_.stop) {
      request.add_stop_token_ids(static_cast<unsigned char>(stop[0]));
    }
    request.mutable_sampling()->set_temperature(static_cast<float>(flags_.temperature));
    request.mutable_sampling()->set_top_p(static_cast<float>(flags_.top_p));
    request.mutable_sampling()->set_seed(flags_.seed);
    request.set_cache_mode(mode_);
    request.set_recent_window(flags_.recent_window);
    request.set_max_relative_error(static_cast<float>(flags_.max_relative_error));
    Tokens answer;
    const bool text = flags_.output == "text";
    absl::StatusOr<v1::GenerateResult> result =
        client.Generate(request, Deadline(), [&](const v1::GeneratedToken& token) {
          const Tokens one = {static_cast<int32_t>(token.token_id())};
          answer.push_back(one[0]);
          if (!text) return;
          std::printf("%s%s", Printable(prompt_, one).c_str(), prompt_.bytes ? "" : " ");
          std::fflush(stdout);
        });
    if (text) std::printf("\n");
    if (!result.ok()) return result.status();
    last_ = *std::move(result);
    nlohmann::json entry = ToJson(last_);
    entry["question"] = Printable(prompt_, question);
    entry["answer"] = Printable(prompt_, answer);
    json_["answers"].push_back(std::move(entry));
    return absl::OkStatus();
  }

  const Flags& flags_;
  const Prompt prompt_;
  v1::CacheMode mode_;
  v1::PrefillResult prefill_result_;
  v1::GenerateResult last_;
  nlohmann::json json_;
};

absl::Status Generate(const Flags& flags) {
  if (flags.prefill.empty() != flags.decode.empty()) {
    return absl::InvalidArgumentError(
        "give both --prefill and --decode, or neither to start a service for the occasion");
  }
  if (flags.prefill.empty() && !(flags.channel == ChannelOptions())) {
    return absl::InvalidArgumentError(
        "the --tls flags and --token-file are for running workers; give --prefill and --decode");
  }
  if (flags.prompt_file.empty() == flags.prompt_tokens_file.empty()) {
    return absl::InvalidArgumentError("give either --prompt-file or --prompt-tokens");
  }
  absl::StatusOr<Prompt> prompt = ReadPrompt(flags);
  if (!prompt.ok()) return prompt.status();
  Generation generation(flags, *std::move(prompt));
  if (!flags.prefill.empty()) return generation.Run(flags.prefill, flags.decode);

  std::fprintf(stderr, "starting server, prefill worker and decode worker ...\n");
  LocalStackOptions options;
  options.model_dir = flags.model;
  options.profile = flags.profile;
  options.threads = flags.threads;
  options.device = flags.device;
  absl::StatusOr<std::unique_ptr<LocalStack>> stack = LocalStack::Start(options);
  if (!stack.ok()) return stack.status();
  return generation.Run((*stack)->prefill(), (*stack)->decode());
}

}  // namespace

void DeclareGenerate(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("generate",
                                         "Prefill a prompt and generate from its KV cache; without "
                                         "addresses the service is started on "
                                         "this machine for the occasion");
  command->add_option("--model", flags->model, "Folder of the model")->required();
  command->add_option("--prompt-file", flags->prompt_file, "Text to prefill (byte-level models)");
  command->add_option("--prompt-tokens", flags->prompt_tokens_file,
                      "File of token ids to prefill, for models with a tokenizer");
  command->add_option(
      "--question", flags->questions,
      "Text to append to the prompt as it stands; may be repeated, each is answered");
  command->add_option("--prefill", flags->prefill, "Address of a running fourierkv-prefill");
  command->add_option("--decode", flags->decode, "Address of a running fourierkv-decode");
  DeclareChannelFlags(*command, flags->channel);
  command->add_option("--profile", flags->profile,
                      "Codec profile of the service that is started: a file or 'default'");
  command->add_option("--cache", flags->cache, "compact, or exact: the dense baseline")
      ->check(CLI::IsMember({"compact", "exact"}))
      ->capture_default_str();
  command
      ->add_option("--recent-window", flags->recent_window,
                   "Tokens before the end that stay exact; 0: the workers' default")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--max-relative-error", flags->max_relative_error,
                   "Keep and attend to segments exactly whose compact form is worse; 0: no bound")
      ->check(CLI::Range(0.0, 1e30))
      ->capture_default_str();
  command
      ->add_option("--exact-form", flags->exact_form,
                   "How the service keeps exact data: exact, or lossless for fewer bytes")
      ->check(CLI::IsMember({"exact", "lossless"}))
      ->capture_default_str();
  command
      ->add_option(
          "--compressed-form", flags->compressed_form,
          "How the service keeps compressed data: compact, or archived for far fewer bytes "
          "and a slower fetch; that needs a profile with an archive section")
      ->check(CLI::IsMember({"compact", "archived"}))
      ->capture_default_str();
  command->add_option("--max-new-tokens", flags->max_new_tokens, "Length of an answer at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--stop", flags->stop, "Character that ends an answer; may be repeated")
      ->check([](const std::string& text) {
        return text.size() == 1 ? "" : "--stop takes one character";
      });
  command->add_option("--temperature", flags->temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--top-p", flags->top_p, "Nucleus sampling")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Seed of the sampler")->capture_default_str();
  command->add_option("--device", flags->device, "Compute backend of a service started here")
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "Compute threads of each process; 0: all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option("--timeout", flags->timeout_seconds, "Seconds for prefill, and for an answer")
      ->check(CLI::Range(0.001, 86400.0))
      ->capture_default_str();
  command->add_option("--output", flags->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command->callback([flags, &chosen] { chosen = [flags] { return Generate(*flags); }; });
}

}  // namespace fourierkv
