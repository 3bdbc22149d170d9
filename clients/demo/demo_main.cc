// fourierkv-demo: the whole service on this machine, with a small trained model and hidden facts.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "clients/demo/demo_run.h"
#include "clients/eval/needle_prompt.h"
#include "clients/local_stack/local_stack.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string model = "tests/data/needle-4m";
  std::string profile;
  std::string text = "LICENSE";
  int64_t tokens = 8192;
  int facts = 20;
  uint64_t seed = 1;
  int recent_window = 256;
  int threads = 0;
  std::string device = "cpu";
  std::string output = "table";
};

void Declare(CLI::App& app, Flags& flags) {
  app.set_version_flag("--version", std::string("fourierkv-demo ") + FOURIERKV_VERSION);
  app.add_option("--model", flags.model, "Folder of a byte-level model taught to recall facts")
      ->capture_default_str();
  app.add_option("--profile", flags.profile,
                 "Codec profile: a file, or 'default'; without it the model folder's "
                 "codec_profile.json if there is one");
  app.add_option("--text", flags.text, "Text to hide the facts in")->capture_default_str();
  app.add_option("--tokens", flags.tokens, "Length of the document")
      ->check(CLI::Range(int64_t{512}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--facts", flags.facts, "Facts to hide and to ask for")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seed", flags.seed, "Seed of names, numbers and places")->capture_default_str();
  app.add_option("--recent-window", flags.recent_window, "Tokens before the end that stay exact")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "Compute threads of each process; 0: all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--device", flags.device, "Compute backend of each process")
      ->capture_default_str();
  app.add_option("--output", flags.output, "table or json")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path, "; name a text with --text"));
  }
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

absl::StatusOr<bool> Demonstrate(const Flags& flags) {
  absl::StatusOr<std::string> haystack = ReadText(flags.text);
  if (!haystack.ok()) return haystack.status();
  absl::StatusOr<NeedleDocument> document =
      HideNeedles(*haystack, flags.tokens, flags.facts, flags.seed);
  if (!document.ok()) return document.status();
  std::fprintf(stderr, "starting server, prefill worker and decode worker ...\n");
  LocalStackOptions options;
  options.model_dir = flags.model;
  options.profile = flags.profile;
  options.recent_window = flags.recent_window;
  options.threads = flags.threads;
  options.device = flags.device;
  absl::StatusOr<std::unique_ptr<LocalStack>> stack = LocalStack::Start(options);
  if (!stack.ok()) return stack.status();
  std::fprintf(stderr, "server %s, prefill %s, decode %s\n", (*stack)->server().c_str(),
               (*stack)->prefill().c_str(), (*stack)->decode().c_str());
  absl::StatusOr<DemoReport> report = RunDemo(**stack, *document);
  if (!report.ok()) return report.status();
  const std::string text =
      flags.output == "json" ? ReportJson(*report) + "\n" : FormatReport(*report);
  std::fputs(text.c_str(), stdout);
  return report->all_right();
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app{
      "Starts the service on free loopback ports, hides facts in a long document and asks for each "
      "with a dense and with a compact cache. Exit status 0: every answer was right.",
      "fourierkv-demo"};
  fourierkv::Flags flags;
  fourierkv::Declare(app, flags);
  CLI11_PARSE(app, argc, argv);
  fourierkv::LocalStack::StopOnSignals();
  const absl::StatusOr<bool> all_right = fourierkv::Demonstrate(flags);
  if (!all_right.ok()) {
    std::fprintf(stderr, "\nfourierkv-demo: %s\n",
                 std::string(all_right.status().message()).c_str());
    return 2;
  }
  return *all_right ? 0 : 1;
}
