// Messages that name things, as the core's types.

#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "fourierkv/v1/kv_cache_service.pb.h"
#include "fourierkv/v1/types.pb.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/cache_namespace.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// Validated; the tenant's own, whatever the message says, if `tenant` is not empty (tenant_salt.h).
// InvalidArgument naming the field ("namespace.kv_dtype ...").
absl::StatusOr<CacheNamespace> FromProto(const v1::CacheNamespace& message,
                                         const std::string& tenant);

// With the codec of its profile. FailedPrecondition if the profile is not known to the service.
absl::StatusOr<std::shared_ptr<const NamespaceContext>> ResolveNamespace(
    const v1::CacheNamespace& message, const std::string& tenant, const ProfileStore& profiles);

// InvalidArgument, naming `field` and the position, for a key that is not 32 bytes, or for more
// than `limit` keys.
absl::StatusOr<std::vector<BlockKey>> ParseKeys(
    const google::protobuf::RepeatedPtrField<std::string>& raw, const char* field, int limit);

// A bound on relative errors as messages carry it, 0 meaning none: kNoErrorBound. InvalidArgument
// for NaN and negative ones.
absl::StatusOr<float> ParseErrorBound(float bound, const char* field);

// InvalidArgument for more than kMaxSequenceTokens.
absl::StatusOr<int64_t> ParseSequenceCapacity(uint64_t capacity, const char* field);

// The forms of `segment` that are held, smallest first.
std::vector<v1::HeldForm> HeldForms(const SegmentSummary& segment);

// UNSPECIFIED is MEMORY. InvalidArgument naming `field` for a value that is unknown here.
absl::StatusOr<Durability> FromProto(v1::Durability durability, const char* field);
v1::Durability ToProto(Durability durability);

}  // namespace fourierkv
