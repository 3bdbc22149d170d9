// fourierkv profile: show and check codec profiles; how to find them is in commands of their own.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/commands.h"
#include "clients/cli/search_command.h"
#include "clients/cli/sequence_profile_command.h"
#include "clients/worker/worker_runtime.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string profile;
  std::string model;
  std::string output = "text";
};

std::string BandText(const Band& band) {
  const std::string type = band.bits == 16 ? "bf16" : absl::StrCat("int", band.bits);
  if (band.spectral()) {
    return absl::StrFormat("%d spectral (M %d, %s)", band.channels.size(), band.coefficients, type);
  }
  return absl::StrFormat("%d resident (%s)", band.channels.size(), type);
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
        const HeadProfile& of = profile.head(layer, head, part);
        std::string bands = of.rotation.empty() ? "" : "rotated";
        for (const Band& band : of.bands) {
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
}

}  // namespace fourierkv
