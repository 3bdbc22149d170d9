// fourierkv profile: show, check and calibrate codec profiles.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/commands.h"
#include "clients/cli/sequence_profile_command.h"
#include "clients/cli/search_command.h"
#include "clients/worker/worker_runtime.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/segment_layout.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/calibrate.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string profile;
  std::string model;
  std::vector<std::string> texts;
  std::string write;
  std::string output = "text";
  int threads = 0;
  int64_t tokens = 8192;
  CalibrationOptions calibration;
};

std::string BandText(const Band& band) {
  if (band.spectral()) {
    return absl::StrFormat("%d spectral (M %d, int%d)", band.channels.size(), band.coefficients,
                           band.bits);
  }
  return absl::StrFormat(
      "%d resident (%s)", band.channels.size(),
      band.bits == 16 ? std::string("bf16") : absl::StrFormat("int%d", band.bits));
}

nlohmann::json Summary(const CodecProfile& profile, const ProfileLayout& layout) {
  const int64_t dense = profile.geometry.DenseBytes(profile.segment_tokens);
  return {{"name", profile.name},
          {"profile_id", layout.id().ToHex()},
          {"basis", BasisName(profile.basis)},
          {"segment_tokens", profile.segment_tokens},
          {"layers", profile.geometry.layers},
          {"kv_heads", profile.geometry.kv_heads},
          {"head_dim", profile.geometry.head_dim},
          {"bits_per_element", layout.BitsPerElement()},
          {"payload_ratio", static_cast<double>(dense) / layout.SegmentPayloadBytes()}};
}

void PrintProfile(const CodecProfile& profile, const Flags& flags) {
  if (profile.sequence) return PrintSequenceProfile(profile, flags.output == "json");
  const ProfileLayout layout(profile);
  const nlohmann::json summary = Summary(profile, layout);
  if (flags.output == "json") {
    std::printf("%s\n", summary.dump(2).c_str());
    return;
  }
  std::printf("%s",
              absl::StrFormat("%s\n  id %s\n  %d layers, %d KV heads of %d channels; segments "
                              "of %d tokens, basis %s\n  %.3f bits per element: %.2f x smaller "
                              "than bf16\n",
                              profile.name, layout.id().ToHex(), profile.geometry.layers,
                              profile.geometry.kv_heads, profile.geometry.head_dim,
                              profile.segment_tokens, BasisName(profile.basis),
                              layout.BitsPerElement(), summary["payload_ratio"].get<double>())
                  .c_str());
  for (int layer = 0; layer < profile.geometry.layers; ++layer) {
    for (int head = 0; head < profile.geometry.kv_heads; ++head) {
      for (const Part part : kParts) {
        std::string bands;
        for (const Band& band : profile.head(layer, head, part).bands) {
          absl::StrAppend(&bands, bands.empty() ? "" : ", ", BandText(band));
        }
        std::printf("  layer %2d head %2d %s: %s\n", layer, head, PartName(part), bands.c_str());
      }
    }
  }
}

absl::StatusOr<CodecProfile> Load(const Flags& flags) {
  if (flags.model.empty()) {
    if (flags.profile.empty() || flags.profile == "default") {
      return absl::InvalidArgumentError("name a profile, or a model with --model");
    }
    return CodecProfile::FromFile(flags.profile);
  }
  absl::StatusOr<ModelConfig> config = ModelConfig::FromFolder(flags.model);
  if (!config.ok()) return config.status();
  return LoadProfile(flags.profile, flags.model, config->Geometry());
}

absl::Status Show(const Flags& flags) {
  absl::StatusOr<CodecProfile> profile = Load(flags);
  if (!profile.ok()) return profile.status();
  PrintProfile(*profile, flags);
  return absl::OkStatus();
}

absl::Status Check(const Flags& flags) {
  absl::StatusOr<CodecProfile> profile = Load(flags);
  if (!profile.ok()) return profile.status();
  std::printf("ok: %s%s\n", profile->name.c_str(),
              flags.model.empty() ? "" : absl::StrCat(" fits ", flags.model).c_str());
  return absl::OkStatus();
}

absl::Status CalibrateProfile(const Flags& flags) {
  auto pool = std::make_shared<ThreadPool>(flags.threads);
  absl::StatusOr<std::unique_ptr<ComputeBackend>> backend = CreateBackend("cpu", flags.threads);
  if (!backend.ok()) return backend.status();
  absl::StatusOr<std::shared_ptr<const LlamaModel>> model = LlamaModel::Load(flags.model);
  if (!model.ok()) return model.status();
  if (!IsByteLevel(flags.model, (*model)->config())) {
    return absl::InvalidArgumentError(absl::StrCat(
        flags.model, " is not byte-level; calibration reads text and needs a byte-level model"));
  }
  std::string text;
  for (const std::string& path : flags.texts) {
    absl::StatusOr<std::string> one = ReadWholeFile(path);
    if (!one.ok()) return one.status();
    absl::StrAppend(&text, *one);
  }
  std::vector<int32_t> tokens = EncodeBytes(text);
  const int64_t limit = std::min<int64_t>(flags.tokens, (*model)->config().max_position_embeddings);
  if (static_cast<int64_t>(tokens.size()) > limit) tokens.resize(limit);
  std::fprintf(stderr, "calibrating on %zu tokens ...\n", tokens.size());
  absl::StatusOr<CodecProfile> profile =
      Calibrate(*model, pool, backend->get(), tokens, flags.calibration);
  if (!profile.ok()) return profile.status();
  std::ofstream file(flags.write, std::ios::binary | std::ios::trunc);
  file << profile->ToPrettyJson();
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", flags.write));
  PrintProfile(*profile, flags);
  return absl::OkStatus();
}

void AddOutput(CLI::App* command, Flags& flags) {
  command->add_option("--output", flags.output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

void Choose(CLI::App* command, const std::shared_ptr<Flags>& flags, Command& chosen,
            absl::Status (*run)(const Flags&)) {
  command->callback([flags, &chosen, run] { chosen = [flags, run] { return run(*flags); }; });
}

}  // namespace

void DeclareProfile(CLI::App& app, Command& chosen) {
  CLI::App* group = app.add_subcommand("profile", "Codec profiles");
  group->require_subcommand(1);
  auto flags = std::make_shared<Flags>();

  CLI::App* show = group->add_subcommand("show", "What a profile does to each head");
  show->add_option("profile", flags->profile, "A file, or 'default' with --model");
  show->add_option("--model", flags->model, "Folder of a model: its own profile, or the default");
  AddOutput(show, *flags);
  Choose(show, flags, chosen, Show);

  CLI::App* check = group->add_subcommand("check", "Is a profile valid, and does it fit a model?");
  check->add_option("profile", flags->profile, "A file, or 'default' with --model");
  check->add_option("--model", flags->model, "Folder of the model it must fit");
  Choose(check, flags, chosen, Check);

  DeclareProfileSearch(*group, chosen);

  DeclareSequenceProfiles(group, chosen);

  CLI::App* calibrate = group->add_subcommand(
      "calibrate", "Choose spectral channels by what losing them does to attention on a text");
  CalibrationOptions& options = flags->calibration;
  calibrate->add_option("--model", flags->model, "Folder of the model")->required();
  calibrate->add_option("--text", flags->texts, "Text files to calibrate on")->required();
  calibrate->add_option("--write", flags->write, "File to write the profile to")->required();
  calibrate->add_option("--name", options.name, "Name of the profile")->required();
  calibrate->add_option("--tokens", flags->tokens, "Tokens of the text to use at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 22))
      ->capture_default_str();
  calibrate->add_option("--k-spectral", options.k_spectral, "Share of K's channels")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  calibrate->add_option("--v-spectral", options.v_spectral, "Share of V's channels")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  calibrate->add_option("--k-precise", options.k_precise, "Share of K's channels kept as int8")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  calibrate->add_option("--v-precise", options.v_precise, "Share of V's channels kept as int8")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  calibrate->add_option("--coefficients", options.coefficients, "M per spectral channel")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  calibrate->add_option("--resident-bits", options.resident_bits, "4, 8 or 16")
      ->check(CLI::IsMember({4, 8, 16}))
      ->capture_default_str();
  calibrate
      ->add_option("--pool", options.pool,
                   "Where channels compete to be resident: within a head, a layer or the model")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, ChannelPool>{{"head", ChannelPool::kHead},
                                             {"layer", ChannelPool::kLayer},
                                             {"model", ChannelPool::kModel}}))
      ->default_str("model");
  calibrate->add_option("--threads", flags->threads, "Compute threads; 0: all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  AddOutput(calibrate, *flags);
  Choose(calibrate, flags, chosen, CalibrateProfile);
}

}  // namespace fourierkv
