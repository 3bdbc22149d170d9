// fourierkv eval: what codec profiles do to a model, beside controls of equal size.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "clients/cli/commands.h"
#include "clients/eval/eval_output.h"
#include "clients/eval/eval_run.h"
#include "compute/base/content_hash.h"
#include "compute/model/byte_tokenizer.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string model;
  std::string text;
  std::string calibration;
  std::vector<std::string> profiles;
  std::vector<std::string> tasks = {"needle", "near", "several", "last", "copy"};
  EvalPlan plan;
  bool no_controls = false;
  int threads = 0;
  std::string output = "table";
  std::vector<std::string> reports;
};

std::string HashOf(const std::string& text) {
  return Sha256().AddBytes(text.data(), text.size()).Finish().ToHex();
}

absl::Status MakePlan(const Flags& flags, EvalSource* source, EvalPlan* plan) {
  *plan = flags.plan;
  plan->controls = !flags.no_controls;
  for (const std::string& path : flags.profiles) {
    absl::StatusOr<CodecProfile> profile = CodecProfile::FromFile(path);
    if (!profile.ok()) return profile.status();
    for (const CodecProfile& other : plan->profiles) {
      if (other.name == profile->name) profile->name = path;  // rows must differ
    }
    plan->profiles.push_back(*std::move(profile));
  }
  plan->tasks.clear();
  for (const std::string& name : flags.tasks) {
    absl::StatusOr<RecallTask> task = ParseTask(name);
    if (!task.ok()) return task.status();
    plan->tasks.push_back(*task);
  }
  if (flags.calibration.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> calibration = ReadWholeFile(flags.calibration);
  if (!calibration.ok()) return calibration.status();
  source->calibration = flags.calibration;
  source->calibration_sha256 = HashOf(*calibration);
  plan->calibration_text = *std::move(calibration);
  return absl::OkStatus();
}

// Before the work, not behind it.
absl::Status CheckWritable(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (!std::ofstream(path, std::ios::binary | std::ios::app)) {
      return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteReports(const std::vector<std::string>& paths, const EvalSource& source,
                          const EvalResult& result) {
  for (const std::string& path : paths) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << (absl::EndsWith(path, ".svg")  ? EvalSvg(result)
             : absl::EndsWith(path, ".md") ? EvalMarkdown(source, result)
                                           : EvalHtml(source, result));
    file.close();
    if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

absl::Status Evaluate(const Flags& flags) {
  EvalSource source;
  EvalPlan plan;
  if (absl::Status s = CheckWritable(flags.reports); !s.ok()) return s;
  if (absl::Status s = MakePlan(flags, &source, &plan); !s.ok()) return s;
  absl::StatusOr<std::string> text = ReadWholeFile(flags.text);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::unique_ptr<ComputeBackend>> backend = CreateBackend("cpu", flags.threads);
  if (!backend.ok()) return backend.status();
  absl::StatusOr<std::shared_ptr<const LlamaModel>> model = LlamaModel::Load(flags.model);
  if (!model.ok()) return model.status();
  if (!IsByteLevel(flags.model, (*model)->config())) {
    return absl::InvalidArgumentError(absl::StrCat(
        flags.model, " is not byte-level; evaluation reads text and needs a byte-level model"));
  }
  source.model = flags.model;
  source.model_sha256 = (*model)->revision().ToHex();
  source.text = flags.text;
  source.text_sha256 = HashOf(*text);
  source.backend = (*backend)->name();
  source.version = FOURIERKV_VERSION;

  const EvalEngine engine = {*model, std::make_shared<ThreadPool>(flags.threads), backend->get()};
  absl::StatusOr<EvalResult> result = RunEval(
      engine, std::move(plan), *text,
      [](absl::string_view what) { std::fprintf(stderr, "%s\n", std::string(what).c_str()); });
  if (!result.ok()) return result.status();
  const std::string out =
      flags.output == "json" ? EvalJson(source, *result) : EvalTable(source, *result);
  std::fwrite(out.data(), 1, out.size(), stdout);
  return WriteReports(flags.reports, source, *result);
}

}  // namespace

void DeclareEval(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<Flags>();
  EvalPlan& plan = flags->plan;
  CLI::App* eval = app.add_subcommand(
      "eval", "Measure what codec profiles do to a model: recall, text, attention, bytes");
  eval->add_option("--model", flags->model, "Folder of a byte-level model")->required();
  eval->add_option("--text", flags->text, "Text that the model and the profiles have not seen")
      ->required();
  eval->add_option("--profile", flags->profiles, "Profiles to measure")->delimiter(',');
  eval->add_option("--context", plan.context_tokens, "Tokens per context; repeatable")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1024}, int64_t{1} << 22))
      ->capture_default_str();
  eval->add_option("--seed", plan.seeds, "One context for each; repeatable")
      ->delimiter(',')
      ->capture_default_str();
  eval->add_option("--tasks", flags->tasks, "Of needle, near, several, last, copy")
      ->delimiter(',')
      ->capture_default_str();
  eval->add_option("--questions", plan.questions, "Per task and context")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  eval->add_option("--tail-tokens", plan.tail_tokens, "Text behind the context")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  eval->add_option("--recent-window", plan.recent_window, "Tokens before the end that stay exact")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  eval->add_flag("--no-controls", flags->no_controls, "Measure nothing but dense and the profiles");
  eval->add_option("--calibration-text", flags->calibration,
                   "Text to calibrate controls on; without it the evaluated text, in their favour");
  eval->add_option("--threads", flags->threads, "Compute threads; 0: all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  eval->add_option("--output", flags->output, "table or json")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  eval->add_option("--report", flags->reports,
                   "File for a page with plots and tables; for the plots alone if it ends in .svg, "
                   "for the tables if in .md; repeatable")
      ->delimiter(',');
  eval->callback([flags, &chosen] { chosen = [flags] { return Evaluate(*flags); }; });
}

}  // namespace fourierkv
