// fourierkv why-miss: which segment of a prompt is not held, and why.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "clients/cli/commands.h"
#include "clients/cpp/kv_client.h"
#include "clients/worker/worker_runtime.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/llama_model.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string server;
  ChannelOptions channel;
  std::string prompt_file;
  std::string token_ids_file;
  std::string model;
  std::string model_id;
  std::string profile;
  std::string cache = "compact";
  std::string tenant_salt;
  // Without --model:
  std::string model_revision;
  std::string weight_dtype = "bf16";
  std::string kv_dtype = "bf16";
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  std::string rope;
  uint32_t tp_rank = 0;
  uint32_t tp_size = 1;
  std::string lora_id;
  std::string profile_id;
  uint32_t segment_tokens = 256;
  uint64_t sequence_capacity = 0;
  std::string output = "text";
};

// The namespace in which this project's workers keep the model's caches.
absl::StatusOr<v1::CacheNamespace> NamespaceOfModel(const Flags& flags) {
  absl::StatusOr<std::shared_ptr<const LlamaModel>> model = LlamaModel::Load(flags.model);
  if (!model.ok()) return model.status();
  absl::StatusOr<CodecProfile> profile =
      LoadProfile(flags.profile, flags.model, (*model)->config().Geometry());
  if (!profile.ok()) return profile.status();
  WorkerOptions options;
  options.model_dir = flags.model;
  options.model_id = flags.model_id;
  options.tenant_salt = flags.tenant_salt;
  return NamespaceOf(options, **model, *profile,
                     flags.cache == "exact" ? v1::CACHE_MODE_EXACT : v1::CACHE_MODE_COMPACT);
}

absl::StatusOr<v1::CacheNamespace> NamespaceOfFlags(const Flags& flags) {
  v1::CacheNamespace ns;
  ns.set_tenant_salt(flags.tenant_salt);
  ns.set_model_id(flags.model_id);
  ns.set_model_revision(flags.model_revision);
  ns.set_weight_dtype(flags.weight_dtype);
  ns.set_kv_dtype(flags.kv_dtype);
  ns.set_layers(flags.layers);
  ns.set_kv_heads(flags.kv_heads);
  ns.set_head_dim(flags.head_dim);
  ns.set_rope(flags.rope);
  ns.set_tp_rank(flags.tp_rank);
  ns.set_tp_size(flags.tp_size);
  ns.set_lora_id(flags.lora_id);
  if (!flags.profile_id.empty()) {
    absl::StatusOr<Digest> id = Digest::FromHex(flags.profile_id, "--profile-id");
    if (!id.ok()) return id.status();
    ns.set_profile_id(id->ToString());
  }
  ns.set_segment_tokens(flags.segment_tokens);
  return ns;
}

absl::StatusOr<v1::ExplainMissRequest> MakeRequest(const Flags& flags) {
  if (flags.prompt_file.empty() == flags.token_ids_file.empty()) {
    return absl::InvalidArgumentError("give either --prompt-file or --token-ids-file");
  }
  if (flags.model.empty() && !flags.prompt_file.empty()) {
    return absl::InvalidArgumentError(
        "--prompt-file needs --model, which says how it is tokenised");
  }
  v1::ExplainMissRequest request;
  request.set_sequence_capacity(flags.sequence_capacity);
  absl::StatusOr<v1::CacheNamespace> ns =
      flags.model.empty() ? NamespaceOfFlags(flags) : NamespaceOfModel(flags);
  if (!ns.ok()) return ns.status();
  *request.mutable_namespace_() = *std::move(ns);
  if (!flags.token_ids_file.empty()) {
    absl::StatusOr<std::vector<int32_t>> tokens = ReadTokenFile(flags.token_ids_file);
    if (!tokens.ok()) return tokens.status();
    request.mutable_token_ids()->Assign(tokens->begin(), tokens->end());
    return request;
  }
  absl::StatusOr<ModelConfig> config = ModelConfig::FromFolder(flags.model);
  if (!config.ok()) return config.status();
  if (!IsByteLevel(flags.model, *config)) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.model,
                     " is not byte-level: tokenise the prompt yourself and give its ids with "
                     "--token-ids-file"));
  }
  absl::StatusOr<std::string> text = ReadWholeFile(flags.prompt_file);
  if (!text.ok()) return text.status();
  const std::vector<int32_t> tokens = EncodeBytes(*text);
  request.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
  return request;
}

std::string Ago(const google::protobuf::Duration& duration) {
  return absl::FormatDuration(absl::Trunc(FromProto(duration), absl::Milliseconds(1)));
}

std::string FateText(const v1::SegmentFate& fate, const v1::ExplainMissResponse& answer) {
  if (fate.forms_size() > 0) {
    std::string text = "held:";
    for (const v1::HeldForm& form : fate.forms()) {
      absl::StrAppendFormat(&text, " %s %d B", FormName(static_cast<SegmentForm>(form.form())),
                            form.bytes());
    }
    return text;
  }
  switch (fate.removal_reason()) {
    case v1::REMOVAL_REASON_EVICTED:
      return absl::StrCat("MISSING: evicted ", Ago(fate.removed_ago()), " ago");
    case v1::REMOVAL_REASON_DELETED:
      return absl::StrCat("MISSING: deleted ", Ago(fate.removed_ago()), " ago");
    case v1::REMOVAL_REASON_DAMAGED:
      return absl::StrCat("MISSING: found damaged, and dropped, ", Ago(fate.removed_ago()), " ago");
    default:
      return answer.has_history() ? absl::StrCat("MISSING: never stored, or removed more than ",
                                                 Ago(answer.history()), " ago")
                                  : "MISSING: never stored since the server started";
  }
}

void PrintText(const v1::ExplainMissResponse& answer) {
  int64_t held = 0;
  while (held < answer.segments_size() && answer.segments(held).forms_size() > 0) ++held;
  std::printf("%d of %d segments match\n", static_cast<int>(held), answer.segments_size());
  for (const v1::SegmentFate& fate : answer.segments()) {
    std::printf("%6llu  %s  %4u tokens  %s\n", static_cast<unsigned long long>(fate.index()),
                absl::BytesToHexString(fate.block_key()).substr(0, 12).c_str(), fate.tokens(),
                FateText(fate, answer).c_str());
  }
  for (const v1::NearNamespace& near : answer.elsewhere()) {
    std::printf("namespace %s holds %llu segments of this prompt; it differs in\n",
                absl::BytesToHexString(near.namespace_key()).substr(0, 12).c_str(),
                static_cast<unsigned long long>(near.matched_segments()));
    for (const v1::FieldDifference& d : near.differences()) {
      if (d.asked().empty() && d.held().empty()) {
        std::printf("    %s\n", d.field().c_str());
      } else {
        std::printf("    %s: asked for '%s', held is '%s'\n", d.field().c_str(), d.asked().c_str(),
                    d.held().c_str());
      }
    }
  }
}

void PrintJson(const v1::ExplainMissResponse& answer) {
  nlohmann::json json = {{"segments", nlohmann::json::array()},
                         {"elsewhere", nlohmann::json::array()}};
  for (const v1::SegmentFate& fate : answer.segments()) {
    nlohmann::json row = {{"key", absl::BytesToHexString(fate.block_key())},
                          {"index", fate.index()},
                          {"tokens", fate.tokens()},
                          {"held", fate.forms_size() > 0},
                          {"why", FateText(fate, answer)}};
    for (const v1::HeldForm& form : fate.forms()) {
      row["bytes"][FormName(static_cast<SegmentForm>(form.form()))] = form.bytes();
    }
    if (fate.has_removed_ago()) {
      row["removed_seconds_ago"] = absl::ToDoubleSeconds(FromProto(fate.removed_ago()));
    }
    json["segments"].push_back(std::move(row));
  }
  for (const v1::NearNamespace& near : answer.elsewhere()) {
    nlohmann::json row = {{"namespace", absl::BytesToHexString(near.namespace_key())},
                          {"matched_segments", near.matched_segments()},
                          {"differences", nlohmann::json::array()}};
    for (const v1::FieldDifference& d : near.differences()) {
      row["differences"].push_back(
          {{"field", d.field()}, {"asked", d.asked()}, {"held", d.held()}});
    }
    json["elsewhere"].push_back(std::move(row));
  }
  std::printf("%s\n", json.dump(2).c_str());
}

absl::Status WhyMiss(const Flags& flags) {
  absl::StatusOr<v1::ExplainMissRequest> request = MakeRequest(flags);
  if (!request.ok()) return request.status();
  absl::StatusOr<std::unique_ptr<KvClient>> client =
      KvClient::Connect(flags.server, absl::Seconds(5), flags.channel);
  if (!client.ok()) return client.status();
  absl::StatusOr<v1::ExplainMissResponse> answer =
      (*client)->ExplainMiss(*request, absl::Now() + absl::Seconds(30));
  if (!answer.ok()) return answer.status();
  flags.output == "json" ? PrintJson(*answer) : PrintText(*answer);
  return absl::OkStatus();
}

}  // namespace

void DeclareWhyMiss(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("why-miss", "Which segment of a prompt a server does not hold, and why");
  const auto option = [&](const char* name, auto& value, const char* help) {
    return command->add_option(name, value, help)->capture_default_str();
  };
  option("--server", flags->server, "Address of fourierkv-server")->required();
  DeclareChannelFlags(*command, flags->channel);
  option("--prompt-file", flags->prompt_file, "The prompt as text, for byte-level models");
  option("--token-ids-file", flags->token_ids_file, "The prompt as token ids");
  option("--model", flags->model,
         "Folder of the model: the namespace is that of this project's workers");
  option("--profile", flags->profile, "With --model: as the workers' flag of that name");
  option("--cache", flags->cache, "With --model: compact or exact")
      ->check(CLI::IsMember({"compact", "exact"}));
  option("--tenant-salt", flags->tenant_salt, "The namespace's fields, as clients send them:");
  option("--model-id", flags->model_id, "with --model, its folder's name if empty");
  option("--model-revision", flags->model_revision, "not with --model, as all that follow");
  option("--weight-dtype", flags->weight_dtype, "");
  option("--kv-dtype", flags->kv_dtype, "");
  option("--layers", flags->layers, "");
  option("--kv-heads", flags->kv_heads, "");
  option("--head-dim", flags->head_dim, "");
  option("--rope", flags->rope, "");
  option("--tp-rank", flags->tp_rank, "");
  option("--tp-size", flags->tp_size, "");
  option("--lora-id", flags->lora_id, "");
  option("--profile-id", flags->profile_id, "64 hexadecimal digits; empty: none");
  option("--segment-tokens", flags->segment_tokens, "");
  option("--sequence-capacity", flags->sequence_capacity,
         "Of a whole sequence: what it was put with");
  option("--output", flags->output, "text or json")->check(CLI::IsMember({"text", "json"}));
  command->callback([flags, &chosen] { chosen = [flags] { return WhyMiss(*flags); }; });
}

}  // namespace fourierkv
