#include "clients/cli/search_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "clients/eval/eval_context.h"
#include "clients/search/archive_search.h"
#include "clients/search/profile_search.h"
#include "compute/base/content_hash.h"
#include "compute/model/byte_tokenizer.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string model;
  std::vector<std::string> texts;
  std::string write;
  std::string state;
  std::string representations = kDefaultRepresentations;
  std::string output = "text";
  std::vector<std::string> tasks = {"needle", "near", "last", "copy"};
  int64_t context = 0;
  int contexts = 2;
  int64_t tail = 1024;
  int questions = 8;
  uint64_t seed = 1;
  int threads = 0;
  SearchOptions search;
  ArchiveSearchOptions archive = {.ratio = 0};  // ratio 0: none
};

struct Inputs {
  std::string text;
  std::string text_digest;
  int64_t context_tokens = 0;
};

absl::StatusOr<Inputs> ReadInputs(const Flags& flags, const ModelConfig& config) {
  Inputs inputs;
  for (const std::string& path : flags.texts) {
    auto one = ReadWholeFile(path);
    if (!one.ok()) return one.status();
    absl::StrAppend(&inputs.text, *one);
  }
  Sha256 digest;
  digest.AddBytes(inputs.text.data(), inputs.text.size());
  inputs.text_digest = digest.Finish().ToHex();
  inputs.context_tokens =
      flags.context > 0
          ? flags.context
          : std::min<int64_t>(8192, config.max_position_embeddings - flags.tail - 1024);
  return inputs;
}

absl::StatusOr<std::vector<std::unique_ptr<EvalContext>>> MakeContexts(const Flags& flags,
                                                                       const Inputs& inputs,
                                                                       const EvalEngine& engine) {
  EvalTextOptions options;
  options.context_tokens = inputs.context_tokens;
  options.tail_tokens = flags.tail;
  options.keep_from_start = flags.search.costs.segment_tokens;
  options.keep_from_end = flags.search.costs.recent_window + 2 * flags.search.costs.segment_tokens;
  options.questions = flags.questions;
  options.tasks.clear();
  for (const std::string& name : flags.tasks) {
    auto task = ParseTask(name);
    if (!task.ok()) return task.status();
    options.tasks.push_back(*task);
  }
  std::vector<std::unique_ptr<EvalContext>> contexts;
  for (int i = 0; i < flags.contexts; ++i) {
    options.seed = flags.seed + i;
    auto text = MakeEvalText(inputs.text, options);
    if (!text.ok()) return text.status();
    std::fprintf(stderr, "prefilling context %d of %d: %lld tokens\n", i + 1, flags.contexts,
                 static_cast<long long>(inputs.context_tokens));
    auto context = EvalContext::Create(engine, *std::move(text));
    if (!context.ok()) return context.status();
    contexts.push_back(*std::move(context));
  }
  return contexts;
}

// Everything that the measured numbers depend on, for the state file.
std::string Identity(const Flags& f, const Inputs& inputs, const LlamaModel& model) {
  return absl::StrCat(model.revision().ToHex(), " ", inputs.text_digest, " ", inputs.context_tokens,
                      " ", f.contexts, " ", f.seed, " ", f.tail, " ", f.questions, " ",
                      absl::StrJoin(f.tasks, ","), " ", f.representations, " ",
                      BasisName(f.search.costs.basis), " ", f.search.costs.segment_tokens, " ",
                      f.search.costs.recent_window, " ", f.search.costs.rotate_k, " ",
                      f.search.costs.rotate_v, " ", f.search.smallest_band);
}

void Print(const SearchResult& result, const Flags& flags) {
  const SearchQuality& q = result.quality;
  if (flags.output == "json") {
    std::printf("%s\n", nlohmann::json{{"profile", flags.write},
                                       {"profile_id", result.profile.Id().ToHex()},
                                       {"ratio", result.ratio},
                                       {"kl", q.kl},
                                       {"top1_agreement", q.top_agreement},
                                       {"bits_per_byte", q.bits_per_byte},
                                       {"dense_bits_per_byte", q.dense_bits_per_byte},
                                       {"questions", q.questions},
                                       {"right", q.right},
                                       {"dense_right", q.dense_right}}
                            .dump(2)
                            .c_str());
    return;
  }
  std::printf("%s", absl::StrFormat(
                        "%s: compressed segments %.2f x smaller than bf16, headers included\n"
                        "  on the search's own contexts: KL divergence %.5f nats, top-1 agreement "
                        "%.2f%%,\n  bits per byte %.4f (dense %.4f), recall %d of %d (dense %d)\n"
                        "  written to %s; judge it with: fourierkv eval --model %s --profile %s "
                        "--text OTHER\n",
                        result.profile.name, result.ratio, q.kl, 100 * q.top_agreement,
                        q.bits_per_byte, q.dense_bits_per_byte, q.right, q.questions, q.dense_right,
                        flags.write, flags.model, flags.write)
                        .c_str());
}

absl::Status Run(const Flags& flags) {
  auto model = LlamaModel::Load(flags.model);
  if (!model.ok()) return model.status();
  const ModelConfig& config = (*model)->config();
  if (!IsByteLevel(flags.model, config)) {
    return absl::InvalidArgumentError(absl::StrCat(
        flags.model, " is not byte-level; a search reads text and needs a byte-level model"));
  }
  SearchOptions options = flags.search;
  auto representations = ParseRepresentations(flags.representations, options.costs.basis,
                                              options.costs.segment_tokens);
  if (!representations.ok()) return representations.status();
  options.representations = *std::move(representations);
  auto inputs = ReadInputs(flags, config);
  if (!inputs.ok()) return inputs.status();
  SearchState state;
  if (!flags.state.empty()) {
    auto opened = SearchState::Open(flags.state, Identity(flags, *inputs, **model));
    if (!opened.ok()) return opened.status();
    state = *std::move(opened);
  }
  auto backend = CreateBackend("cpu", flags.threads);
  if (!backend.ok()) return backend.status();
  const EvalEngine engine{*model, std::make_shared<ThreadPool>(flags.threads), backend->get()};
  auto contexts = MakeContexts(flags, *inputs, engine);
  if (!contexts.ok()) return contexts.status();
  const absl::Time begin = absl::Now();
  const auto progress = [&](absl::string_view message) {
    std::fprintf(stderr, "[%4.0f s] %s\n", absl::ToDoubleSeconds(absl::Now() - begin),
                 std::string(message).c_str());
  };
  auto probe = SearchProbe::Create(engine, *contexts);
  if (!probe.ok()) return probe.status();
  auto result = SearchProfile(*probe, options, state, progress);
  if (!result.ok()) return result.status();
  if (flags.archive.ratio > 0) {
    ArchiveSearchOptions archive = flags.archive;
    archive.recent_window = options.costs.recent_window;
    auto archived = SearchArchive(*probe, *result, archive, progress);
    if (!archived.ok()) return archived.status();
    result->profile.archive = std::move(archived->archive);
    result->profile.evidence["archive_ratio"] = absl::StrFormat("%.3f", archived->ratio);
    result->profile.evidence["archive_measured_kl"] = absl::StrFormat("%.4g", archived->quality.kl);
    result->profile.evidence["archive_measured_top1"] =
        absl::StrFormat("%.4f", archived->quality.top_agreement);
  }
  result->profile.evidence["text"] = inputs->text_digest;
  result->profile.evidence["contexts"] = absl::StrFormat(
      "%d of %d tokens from seed %d", flags.contexts, inputs->context_tokens, flags.seed);
  std::ofstream file(flags.write, std::ios::binary | std::ios::trunc);
  file << result->profile.ToPrettyJson();
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", flags.write));
  Print(*result, flags);
  return absl::OkStatus();
}

}  // namespace

void DeclareProfileSearch(CLI::App& group, Command& chosen) {
  auto flags = std::make_shared<Flags>();
  CLI::App* search = group.add_subcommand(
      "search", "Find the profile that harms a model least for its bytes, by measuring");
  SearchOptions& o = flags->search;
  search->add_option("--model", flags->model, "Folder of the model")->required();
  search->add_option("--text", flags->texts, "Text files to calibrate on")->required();
  search->add_option("--write", flags->write, "File to write the profile to")->required();
  search->add_option("--name", o.name, "Name of the profile")->required();
  search->add_option("--ratio", o.ratio, "Times smaller than bf16, headers included")
      ->check(CLI::Range(2.0, 200.0))
      ->capture_default_str();
  search
      ->add_option("--max-kl", o.max_kl,
                   "The largest ratio up to --ratio whose KL divergence from dense stays below "
                   "this, in nats a token")
      ->check(CLI::PositiveNumber);
  search
      ->add_option("--archive-ratio", flags->archive.ratio,
                   "Also make an archived form, so many times smaller than bf16; 0: none")
      ->check(CLI::Range(0.0, 1000.0))
      ->capture_default_str();
  search
      ->add_option("--archive-max-kl", flags->archive.max_kl,
                   "The largest ratio up to --archive-ratio below this KL divergence")
      ->check(CLI::PositiveNumber);
  search->add_option("--state", flags->state,
                     "File to keep measurements in: an interrupted search goes on there");
  search->add_option("--context", flags->context, "Tokens of a context; 0: 8192 or what fits")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 22))
      ->capture_default_str();
  search->add_option("--contexts", flags->contexts, "Stretches of text to measure on")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  search->add_option("--tail-tokens", flags->tail, "Tokens predicted behind each context")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 16))
      ->capture_default_str();
  search->add_option("--tasks", flags->tasks, "Recall tasks whose answers count")
      ->delimiter(',')
      ->capture_default_str();
  search->add_option("--questions", flags->questions, "Questions per task and context")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  search->add_option("--seed", flags->seed, "Of stretches and planted facts")
      ->capture_default_str();
  search->add_option("--representations", flags->representations, "What to choose from")
      ->capture_default_str();
  search->add_option("--segment-tokens", o.costs.segment_tokens, "S: 128, 256, 512 or 1024")
      ->check(CLI::IsMember({128, 256, 512, 1024}))
      ->capture_default_str();
  search->add_option("--recent-window", o.costs.recent_window, "W: last tokens, which stay exact")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  search
      ->add_option("--smallest-band", o.smallest_band, "Channels that a band should have at least")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  search->add_option("--rotate-v", o.costs.rotate_v, "Compress V in its principal components")
      ->capture_default_str();
  search->add_option("--rotate-k", o.costs.rotate_k, "Compress K in its principal components")
      ->capture_default_str();
  search->add_option("--threads", flags->threads, "Compute threads; 0: all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  search->add_option("--output", flags->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  search->callback([flags, &chosen] { chosen = [flags] { return Run(*flags); }; });
}

}  // namespace fourierkv
