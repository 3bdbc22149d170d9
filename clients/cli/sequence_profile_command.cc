#include "clients/cli/sequence_profile_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/sequence_layout.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/compressed_dims.h"
#include "compute/model/faithful_profile.h"
#include "compute/model/model_config.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string lists, model, name, out;
  std::vector<std::string> texts;
  KvGeometry geometry;
  SequenceScope scope;
  int coefficient_bits = 16;
  int64_t tokens = 8192;
  int threads = 0;
  std::string output = "text";
};

absl::Status Write(const CodecProfile& profile, const Flags& flags) {
  std::ofstream file(flags.out, std::ios::binary | std::ios::trunc);
  file << profile.ToPrettyJson();
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", flags.out));
  PrintSequenceProfile(profile, flags.output == "json");
  return absl::OkStatus();
}

absl::Status Import(const Flags& flags) {
  KvGeometry geometry = flags.geometry;
  if (!flags.model.empty()) {
    const auto config = ModelConfig::FromFolder(flags.model);
    if (!config.ok()) return config.status();
    geometry = config->Geometry();
  } else if (geometry == KvGeometry{}) {
    return absl::InvalidArgumentError(
        "say what model the lists are for: --model, or --layers, --kv-heads and --head-dim");
  }
  const auto text = ReadWholeFile(flags.lists);
  if (!text.ok()) return text.status();
  const auto profile = ImportCompressedDims(
      *text, geometry,
      {.name = flags.name, .scope = flags.scope, .coefficient_bits = flags.coefficient_bits});
  if (!profile.ok()) {
    return absl::Status(profile.status().code(),
                        absl::StrCat(flags.lists, ": ", profile.status().message()));
  }
  return Write(*profile, flags);
}

absl::Status Faithful(const Flags& flags) {
  auto pool = std::make_shared<ThreadPool>(flags.threads);
  const auto backend = CreateBackend("cpu", flags.threads);
  if (!backend.ok()) return backend.status();
  const auto model = LlamaModel::Load(flags.model);
  if (!model.ok()) return model.status();
  if (!IsByteLevel(flags.model, (*model)->config())) {
    return absl::InvalidArgumentError(absl::StrCat(
        flags.model, " is not byte-level; this reads text and needs a byte-level model"));
  }
  std::string text;
  for (const std::string& path : flags.texts) {
    const auto one = ReadWholeFile(path);
    if (!one.ok()) return one.status();
    absl::StrAppend(&text, *one);
  }
  std::vector<int32_t> tokens = EncodeBytes(text);
  const int64_t limit = std::min<int64_t>(flags.tokens, (*model)->config().max_position_embeddings);
  if (static_cast<int64_t>(tokens.size()) > limit) tokens.resize(limit);
  std::fprintf(stderr, "computing %zu tokens ...\n", tokens.size());
  const auto profile = FaithfulProfile(
      *model, pool, backend->get(), tokens,
      {.name = flags.name, .scope = flags.scope, .coefficient_bits = flags.coefficient_bits});
  if (!profile.ok()) return profile.status();
  return Write(*profile, flags);
}

void AddCommon(CLI::App* command, Flags& flags) {
  command->add_option("--out", flags.out, "File to write the profile to")->required();
  command->add_option("--name", flags.name, "Name of the profile")->capture_default_str();
  command->add_option("--coefficient-bits", flags.coefficient_bits, "16 (bf16) or 32 (float)")
      ->check(CLI::IsMember({16, 32}))
      ->capture_default_str();
  command->add_option("--frequencies", flags.scope.frequencies, "Of each spectral channel")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--sink", flags.scope.sink_tokens, "First tokens that stay exact")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--recent", flags.scope.recent_tokens, "Last tokens that stay exact")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_flag("--peak-rescale", flags.scope.peak_rescale,
                    "Rescale each channel to the original's mean and peak, as published");
  command->add_option("--output", flags.output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

}  // namespace

void PrintSequenceProfile(const CodecProfile& profile, bool json) {
  constexpr int64_t kTokens = 32768;  // what the ratio is given for
  const SequenceLayout layout(profile);
  const KvGeometry& g = profile.geometry;
  const SequenceScope& scope = layout.scope();
  int64_t spectral[2] = {};
  for (int l = 0; l < g.layers; ++l) {
    for (Part part : kParts) {
      for (const SequenceHead& head : layout.part(l, part).heads) {
        spectral[static_cast<int>(part)] += static_cast<int64_t>(head.spectral.size());
      }
    }
  }
  const double channels = static_cast<double>(g.layers) * g.kv_heads * g.head_dim;
  const double ratio = static_cast<double>(g.DenseBytes(kTokens)) /
                       static_cast<double>(layout.PayloadBytes(kTokens));
  if (json) {
    const nlohmann::json summary = {{"name", profile.name},
                                    {"profile_id", layout.id().ToHex()},
                                    {"layers", g.layers},
                                    {"kv_heads", g.kv_heads},
                                    {"head_dim", g.head_dim},
                                    {"sink_tokens", scope.sink_tokens},
                                    {"recent_tokens", scope.recent_tokens},
                                    {"frequencies", scope.frequencies},
                                    {"peak_rescale", scope.peak_rescale},
                                    {"k_spectral", spectral[0] / channels},
                                    {"v_spectral", spectral[1] / channels},
                                    {"payload_ratio_32k", ratio}};
    std::printf("%s\n", summary.dump(2).c_str());
    return;
  }
  std::printf("%s", absl::StrFormat(
                        "%s\n  id %s\n  %d layers, %d KV heads of %d channels; whole sequences: "
                        "%d first and %d recent tokens exact, %d frequencies%s\n  spectral: %.1f%% "
                        "of K, %.1f%% of V; %.2f x smaller than bf16 at 32k tokens\n",
                        profile.name, layout.id().ToHex(), g.layers, g.kv_heads, g.head_dim,
                        scope.sink_tokens, scope.recent_tokens, scope.frequencies,
                        scope.peak_rescale ? ", rescaled to peaks" : "",
                        100 * spectral[0] / channels, 100 * spectral[1] / channels, ratio)
                        .c_str());
}

void DeclareSequenceProfiles(CLI::App* profile, Command& chosen) {
  auto flags = std::make_shared<Flags>();
  flags->name = "faithful";

  CLI::App* import = profile->add_subcommand(
      "import", "A profile from the lists of channels that FourierAttention's authors publish");
  import->add_option("--lists", flags->lists, "A compressed_dims*.json")->required();
  auto* model = import->add_option("--model", flags->model, "Folder of the model they are for");
  import->add_option("--layers", flags->geometry.layers, "Layers of the model")->excludes(model);
  import->add_option("--kv-heads", flags->geometry.kv_heads, "KV heads of a layer")
      ->excludes(model);
  import->add_option("--head-dim", flags->geometry.head_dim, "Channels of a head")->excludes(model);
  AddCommon(import, *flags);
  import->callback([flags, &chosen] { chosen = [flags] { return Import(*flags);
};
}  // namespace fourierkv
);

CLI::App* faithful = profile->add_subcommand(
    "faithful", "A profile chosen as published, by squared error on a text");
faithful->add_option("--model", flags->model, "Folder of the model")->required();
faithful->add_option("--text", flags->texts, "Text files to compute")->required();
faithful->add_option("--tokens", flags->tokens, "Tokens of the text to use at most")
    ->check(CLI::Range(int64_t{1}, kMaxSequenceTokens))
    ->capture_default_str();
faithful->add_option("--threads", flags->threads, "Compute threads; 0: all")
    ->check(CLI::Range(0, 1024))
    ->capture_default_str();
AddCommon(faithful, *flags);
faithful->callback([flags, &chosen] { chosen = [flags] { return Faithful(*flags); }; });
}

}  // namespace fourierkv
