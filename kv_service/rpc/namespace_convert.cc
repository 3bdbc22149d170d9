#include "kv_service/rpc/namespace_convert.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/codec/sequence_scope.h"
#include "kv_service/core/tenant_salt.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

// Protobuf's unsigned fields as int; what does not fit is caught by the core's validation.
int ToInt(uint32_t value) {
  return value > std::numeric_limits<int>::max() ? std::numeric_limits<int>::max()
                                                 : static_cast<int>(value);
}

v1::HeldForm ToProto(const FormSummary& summary, SegmentForm form) {
  v1::HeldForm message;
  message.set_form(ToProto(form));
  message.set_bytes(summary.bytes);
  message.set_mean_relative_error(summary.mean_relative_error);
  message.set_max_relative_error(summary.max_relative_error);
  return message;
}

}  // namespace

absl::StatusOr<CacheNamespace> FromProto(const v1::CacheNamespace& message,
                                         const std::string& tenant) {
  CacheNamespace ns;
  absl::StatusOr<std::string> salt = MakeTenantSalt(tenant, message.tenant_salt());
  if (!salt.ok()) return salt.status();
  ns.tenant_salt = *std::move(salt);
  ns.model_id = message.model_id();
  ns.model_revision = message.model_revision();
  ns.weight_dtype = message.weight_dtype();
  absl::StatusOr<KvDtype> dtype = ParseKvDtype(message.kv_dtype(), "namespace.kv_dtype");
  if (!dtype.ok()) return dtype.status();
  ns.kv_dtype = *dtype;
  ns.geometry.layers = ToInt(message.layers());
  ns.geometry.kv_heads = ToInt(message.kv_heads());
  ns.geometry.head_dim = ToInt(message.head_dim());
  ns.rope = message.rope();
  ns.tp_rank = ToInt(message.tp_rank());
  ns.tp_size = ToInt(message.tp_size());
  ns.lora_id = message.lora_id();
  if (!message.profile_id().empty()) {
    absl::StatusOr<Digest> id = Digest::FromRaw(message.profile_id(), "namespace.profile_id");
    if (!id.ok()) return id.status();
    ns.profile_id = *id;
  }
  ns.segment_tokens = ToInt(message.segment_tokens());
  if (absl::Status s = ns.Validate(); !s.ok()) return s;
  return ns;
}

absl::StatusOr<std::shared_ptr<const NamespaceContext>> ResolveNamespace(
    const v1::CacheNamespace& message, const std::string& tenant, const ProfileStore& profiles) {
  absl::StatusOr<CacheNamespace> ns = FromProto(message, tenant);
  if (!ns.ok()) return ns.status();
  std::shared_ptr<const ProfileLayout> layout;
  if (ns->profile_id.has_value()) {
    absl::StatusOr<std::shared_ptr<const ProfileLayout>> known = profiles.Get(*ns->profile_id);
    if (!known.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("namespace.profile_id: the service does not know profile ",
                       ns->profile_id->ToHex(), "; put it with ProfileService.PutProfile first"));
    }
    layout = *std::move(known);
  }
  return MakeNamespaceContext(*std::move(ns), std::move(layout));
}

absl::StatusOr<float> ParseErrorBound(float bound, const char* field) {
  if (!(bound >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " is ", bound, "; it must be a number of at least 0, where 0 means no bound"));
  }
  return bound == 0 ? kNoErrorBound : bound;
}

absl::StatusOr<int64_t> ParseSequenceCapacity(uint64_t capacity, const char* field) {
  if (capacity > static_cast<uint64_t>(kMaxSequenceTokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", capacity, "; it must be at most ", kMaxSequenceTokens));
  }
  return static_cast<int64_t>(capacity);
}

absl::StatusOr<std::vector<BlockKey>> ParseKeys(
    const google::protobuf::RepeatedPtrField<std::string>& raw, const char* field, int limit) {
  if (raw.size() > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", raw.size(), " keys; at most ", limit, " are taken at once"));
  }
  std::vector<BlockKey> keys;
  keys.reserve(raw.size());
  for (int i = 0; i < raw.size(); ++i) {
    absl::StatusOr<Digest> key = Digest::FromRaw(raw[i], absl::StrCat(field, "[", i, "]"));
    if (!key.ok()) return key.status();
    keys.push_back(*key);
  }
  return keys;
}

std::vector<v1::HeldForm> HeldForms(const SegmentSummary& segment) {
  std::vector<v1::HeldForm> forms;
  for (const SegmentForm form : kHeldForms) {
    if (segment.forms[form].bytes > 0) forms.push_back(ToProto(segment.forms[form], form));
  }
  return forms;
}

absl::StatusOr<Durability> FromProto(v1::Durability durability, const char* field) {
  switch (durability) {
    case v1::DURABILITY_UNSPECIFIED:
    case v1::DURABILITY_MEMORY:
      return Durability::kMemory;
    case v1::DURABILITY_DISK:
      return Durability::kDisk;
    case v1::DURABILITY_SHARED:
      return Durability::kShared;
    default:
      return absl::InvalidArgumentError(absl::StrCat(field, " is ", static_cast<int>(durability),
                                                     "; it must be MEMORY, DISK or SHARED"));
  }
}

v1::Durability ToProto(Durability durability) { return static_cast<v1::Durability>(durability); }

}  // namespace fourierkv
