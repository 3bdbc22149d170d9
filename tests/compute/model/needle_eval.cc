// Measures how codec profiles keep a model's recall, and writes the one that is asked for.
//
//   needle_eval MODEL --calibrate LICENSE --text FILE... [--k 0.7 --v 0.5 ...] [--write PROFILE]
//
// Prints one line per profile: what it is, bits per element, how much smaller the compact part is,
// questions answered exactly, mean negative log-likelihood of the digits, the smallest margin, and
// bits per byte of the text that follows the prompt.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "compute/cache/dense_kv_cache.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/calibrate.h"
#include "tests/compute/model/needle_prompt.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string model, calibration, write, name = "needle";
  std::vector<std::string> texts, profiles;
  std::vector<double> k = {0.7}, v = {0.5}, k_precise = {0}, v_precise = {0};
  std::vector<int> coefficients = {8};
  int bits = 4, facts = 24, length = 8192, seeds = 1, calibration_tokens = 8192;
  int64_t window = 256;
  ChannelPool pool = ChannelPool::kModel;
};

struct Context {
  std::unique_ptr<DenseKvCache> cache;
  NeedlePrompt prompt;
  std::string continuation;
};

constexpr int kContinuation = 512;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <typename T>
T Check(absl::StatusOr<T> result) {
  if (result.ok()) return *std::move(result);
  std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
  std::exit(1);
}

void Check(const absl::Status& status) {
  if (!status.ok()) Check(absl::StatusOr<int>(status));
}

// Facts everywhere between the first segment and the last one before the recent window, and
// questions about some of them, as a prompt of the task has them.
std::vector<int32_t> CalibrationTokens(const Flags& flags) {
  const int facts = flags.calibration_tokens / 512;
  const int last = flags.calibration_tokens - facts * 72;
  NeedlePrompt prompt =
      MakeNeedlePrompt(ReadFile(flags.calibration), last, facts, 0, last, /*seed=*/1);
  for (const NeedleFact& fact : prompt.facts) prompt.text += NeedleQuestion(fact) + fact.digits;
  return EncodeBytes(prompt.text);
}

class Evaluation {
 public:
  explicit Evaluation(Flags flags)
      : flags_(std::move(flags)),
        model_(Check(LlamaModel::Load(flags_.model))),
        pool_(std::make_shared<ThreadPool>()),
        backend_(CreateCpuBackend()),
        runner_(model_, pool_) {}

  void Run() {
    MakeContexts();
    Show("dense", nullptr);
    for (const std::string& path : flags_.profiles) Show(path, CodecProfile::FromFile(path));
    if (flags_.calibration.empty()) return;
    const std::vector<int32_t> tokens = CalibrationTokens(flags_);
    for (double k : flags_.k) {
      for (double v : flags_.v) {
        for (double kp : flags_.k_precise) {
          for (double vp : flags_.v_precise) {
            for (int m : flags_.coefficients) Try(tokens, k, v, kp, vp, m);
          }
        }
      }
    }
  }

 private:
  void MakeContexts() {
    for (const std::string& path : flags_.texts) {
      const std::string text = ReadFile(path);
      for (int seed = 0; seed < flags_.seeds; ++seed) {
        Context context;
        context.prompt = MakeNeedlePrompt(text, flags_.length + kContinuation, flags_.facts, 256,
                                          flags_.length - flags_.window - 256, 1000 + seed);
        context.continuation = context.prompt.text.substr(flags_.length);
        context.prompt.text.resize(flags_.length);
        context.cache = Check(DenseKvCache::Create(model_->config().Geometry(), backend_.get(),
                                                   flags_.length + kContinuation));
        ForwardOutput out;
        Check(Prefill(runner_, EncodeBytes(context.prompt.text), *context.cache, &out));
        contexts_.push_back(std::move(context));
      }
    }
  }

  void Try(const std::vector<int32_t>& tokens, double k, double v, double kp, double vp, int m) {
    CalibrationOptions options;
    options.name = flags_.name;
    options.k_spectral = k;
    options.v_spectral = v;
    options.k_precise = kp;
    options.v_precise = vp;
    options.coefficients = m;
    options.resident_bits = flags_.bits;
    options.pool = flags_.pool;
    const CodecProfile profile = Check(Calibrate(model_, pool_, backend_.get(), tokens, options));
    char what[100];
    std::snprintf(what, sizeof what, "K %.2f+%.2f V %.2f+%.2f M %d int%d%s", k, kp, v, vp, m,
                  flags_.bits,
                  flags_.pool == ChannelPool::kHead    ? " per head"
                  : flags_.pool == ChannelPool::kLayer ? " per layer"
                                                       : "");
    Show(what, profile);
    if (!flags_.write.empty()) std::ofstream(flags_.write) << profile.ToPrettyJson();
  }

  void Show(const std::string& what, const absl::StatusOr<CodecProfile>& profile) {
    ShowLayout(what, std::make_shared<const ProfileLayout>(Check(profile)));
  }
  void Show(const std::string& what, std::nullptr_t) { ShowLayout(what, nullptr); }

  void ShowLayout(const std::string& what, std::shared_ptr<const ProfileLayout> layout) {
    NeedleScore score;
    double bpb = 0, ratio = 1;
    for (Context& context : contexts_) {
      KvCache* cache = context.cache.get();
      std::unique_ptr<CompactKvCache> compact;
      if (layout != nullptr) {
        compact = Check(Compacted(*context.cache, layout, backend_.get(),
                                  {flags_.window, flags_.length + kContinuation}));
        const CacheStats stats = compact->stats();
        ratio = static_cast<double>(stats.dense_bytes - stats.exact_bytes) /
                static_cast<double>(stats.compact_bytes);
        cache = compact.get();
      }
      score.Add(Check(AskNeedles(runner_, *cache, context.prompt.facts)));
      bpb += Check(BitsPerByte(runner_, *cache, context.continuation)) / contexts_.size();
    }
    std::printf(
        "%-40s %6.3f bits %6.2fx  exact %d/%d  digits %d/%d  nll %.5f  margin %6.2f  bpb %.4f\n",
        what.c_str(), layout == nullptr ? 16.0 : layout->BitsPerElement(), ratio, score.exact,
        score.questions, score.digits, 7 * score.questions, score.digit_nll, score.smallest_margin,
        bpb);
    std::fflush(stdout);
  }

  const Flags flags_;
  const std::shared_ptr<const LlamaModel> model_;
  const std::shared_ptr<ThreadPool> pool_;
  const std::unique_ptr<ComputeBackend> backend_;
  LlamaRunner runner_;
  std::vector<Context> contexts_;
};

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  fourierkv::Flags flags;
  CLI::App app("Measures how codec profiles keep a model's recall");
  app.add_option("model", flags.model, "Model folder")->required()->check(CLI::ExistingDirectory);
  app.add_option("--text", flags.texts, "Texts to hide facts in")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--profile", flags.profiles, "Profiles to measure")->check(CLI::ExistingFile);
  app.add_option("--calibrate", flags.calibration, "Text to calibrate new profiles on")
      ->check(CLI::ExistingFile);
  app.add_option("--calibration-tokens", flags.calibration_tokens)
      ->check(CLI::Range(1024, 1 << 20));
  app.add_option("--name", flags.name, "Name of new profiles");
  app.add_option("--k", flags.k, "Shares of K that are spectral");
  app.add_option("--v", flags.v, "Shares of V that are spectral");
  app.add_option("--k-precise", flags.k_precise, "Shares of K in 8 bits");
  app.add_option("--v-precise", flags.v_precise, "Shares of V in 8 bits");
  app.add_option("--coefficients", flags.coefficients, "Coefficients per channel and segment");
  app.add_option("--bits", flags.bits, "Bits of resident channels");
  app.add_option("--facts", flags.facts, "Facts per prompt")->check(CLI::Range(1, 1000));
  app.add_option("--length", flags.length, "Tokens per prompt")->check(CLI::Range(2048, 1 << 20));
  app.add_option("--seeds", flags.seeds, "Prompts per text")->check(CLI::Range(1, 1000));
  app.add_option("--window", flags.window, "Recent window")->check(CLI::Range(0, 1 << 20));
  app.add_option("--write", flags.write, "File for the last new profile");
  app.add_option("--pool", flags.pool, "Over what shares hold: head, layer or model")
      ->transform(CLI::CheckedTransformer(std::map<std::string, fourierkv::ChannelPool>{
          {"head", fourierkv::ChannelPool::kHead},
          {"layer", fourierkv::ChannelPool::kLayer},
          {"model", fourierkv::ChannelPool::kModel}}));
  CLI11_PARSE(app, argc, argv);
  fourierkv::Evaluation(flags).Run();
  return 0;
}
