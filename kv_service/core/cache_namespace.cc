#include "kv_service/core/cache_namespace.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxStringBytes = 256;
constexpr int kMaxTpSize = 1024;

absl::Status CheckText(absl::string_view field, const std::string& text, bool required) {
  if (required && text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is empty; without it different tensors would share a key"));
  }
  if (text.size() > kMaxStringBytes) {
    return absl::InvalidArgumentError(absl::StrCat(field, " has ", text.size(), " bytes; at most ",
                                                   kMaxStringBytes, " are allowed"));
  }
  // These names reach logs and terminals.
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(text.begin(), text.end(), is_control)) {
    return absl::InvalidArgumentError(absl::StrCat(field, " holds control characters"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CacheNamespace::Validate() const {
  if (tenant_salt.size() > kMaxStringBytes) {
    return absl::InvalidArgumentError(absl::StrCat("tenant_salt has ", tenant_salt.size(),
                                                   " bytes; at most ", kMaxStringBytes,
                                                   " are allowed"));
  }
  if (auto s = CheckText("model_id", model_id, true); !s.ok()) return s;
  if (auto s = CheckText("model_revision", model_revision, true); !s.ok()) return s;
  if (auto s = CheckText("weight_dtype", weight_dtype, true); !s.ok()) return s;
  if (auto s = CheckText("rope", rope, false); !s.ok()) return s;
  if (auto s = CheckText("lora_id", lora_id, false); !s.ok()) return s;
  if (kv_dtype != KvDtype::kBf16 && kv_dtype != KvDtype::kFp16) {
    return absl::InvalidArgumentError("kv_dtype must be bf16 or fp16");
  }
  if (auto s = geometry.Validate(); !s.ok()) return s;
  if (tp_size < 1 || tp_size > kMaxTpSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("tp_size is ", tp_size, "; it must be from 1 to ", kMaxTpSize));
  }
  if (tp_rank < 0 || tp_rank >= tp_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("tp_rank is ", tp_rank, "; it must be from 0 to tp_size - 1 = ", tp_size - 1));
  }
  if (profile_id.has_value() && profile_id->IsZero()) {
    return absl::InvalidArgumentError(
        "profile_id is zero; leave it out to hold segments exact only");
  }
  if (segment_tokens == 0 && profile_id.has_value()) return absl::OkStatus();
  if (segment_tokens != 128 && segment_tokens != 256 && segment_tokens != 512 &&
      segment_tokens != 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment_tokens is ", segment_tokens,
                     "; it must be 128, 256, 512 or 1024, or 0 with a "
                     "codec profile of whole sequences"));
  }
  return absl::OkStatus();
}

Digest CacheNamespace::RootKey() const {
  Sha256 hash;
  hash.AddString("fourierkv-namespace-v1");
  hash.AddString(tenant_salt).AddString(model_id).AddString(model_revision);
  hash.AddString(weight_dtype).AddU32(static_cast<uint32_t>(kv_dtype));
  hash.AddU32(geometry.layers).AddU32(geometry.kv_heads).AddU32(geometry.head_dim);
  hash.AddString(rope).AddU32(tp_rank).AddU32(tp_size).AddString(lora_id);
  hash.AddString(profile_id.has_value() ? profile_id->ToString() : std::string());
  hash.AddU32(segment_tokens);
  return hash.Finish();
}

const SequenceLayout* NamespaceContext::sequence() const {
  return layout != nullptr ? layout->sequence().get() : nullptr;
}

absl::StatusOr<std::shared_ptr<const NamespaceContext>> MakeNamespaceContext(
    CacheNamespace ns, std::shared_ptr<const ProfileLayout> layout) {
  if (auto s = ns.Validate(); !s.ok()) return s;
  if (ns.profile_id.has_value() != (layout != nullptr)) {
    return absl::InvalidArgumentError(layout != nullptr
                                          ? "profile_id is missing, but a codec profile was given"
                                          : "profile_id names a codec profile that was not given");
  }
  if (layout != nullptr) {
    if (layout->id() != *ns.profile_id) {
      return absl::InvalidArgumentError(absl::StrCat("profile_id is ", ns.profile_id->ToHex(),
                                                     ", but profile ", layout->id().ToHex(),
                                                     " was given"));
    }
    if (auto s = layout->profile().CheckFits(ns.geometry); !s.ok()) return s;
    if (layout->profile().segment_tokens != ns.segment_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("segment_tokens is ", ns.segment_tokens,
                                                     "; the codec profile has ",
                                                     layout->profile().segment_tokens));
    }
  }
  auto context = std::make_shared<NamespaceContext>();
  context->root = ns.RootKey();
  context->ns = std::move(ns);
  context->layout = std::move(layout);
  return context;
}

}  // namespace fourierkv
