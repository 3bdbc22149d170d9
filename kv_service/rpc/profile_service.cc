#include "kv_service/rpc/profile_service.h"

#include "compute/base/structured_log.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {

grpc::Status ProfileServiceImpl::PutProfile(grpc::ServerContext* context,
                                            const v1::PutProfileRequest* request,
                                            v1::PutProfileResponse* response) {
  absl::StatusOr<std::shared_ptr<const ProfileLayout>> layout =
      profiles_->Put(request->profile_json());
  if (!layout.ok()) return ToGrpc(layout.status());
  Log(LogLevel::kInfo, "profile.put",
      {{"id", (*layout)->id().ToHex()},
       {"name", (*layout)->profile().name},
       {"bits_per_element", (*layout)->BitsPerElement()}});
  if (tiers_ != nullptr) {
    tiers_->StoreProfile(*layout, absl::FromChrono(context->deadline()));
  }
  response->set_profile_id((*layout)->id().ToString());
  return grpc::Status::OK;
}

grpc::Status ProfileServiceImpl::GetProfile(grpc::ServerContext* /*context*/,
                                            const v1::GetProfileRequest* request,
                                            v1::GetProfileResponse* response) {
  absl::StatusOr<Digest> id = Digest::FromRaw(request->profile_id(), "profile_id");
  if (!id.ok()) return ToGrpc(id.status());
  absl::StatusOr<std::shared_ptr<const ProfileLayout>> layout = profiles_->Get(*id);
  if (!layout.ok()) return ToGrpc(layout.status());
  response->set_profile_json((*layout)->profile().ToJson());
  return grpc::Status::OK;
}

grpc::Status ProfileServiceImpl::ListProfiles(grpc::ServerContext* /*context*/,
                                              const v1::ListProfilesRequest* /*request*/,
                                              v1::ListProfilesResponse* response) {
  for (const std::shared_ptr<const ProfileLayout>& layout : profiles_->List()) {
    const CodecProfile& profile = layout->profile();
    v1::ProfileSummary* summary = response->add_profiles();
    summary->set_profile_id(layout->id().ToString());
    summary->set_name(profile.name);
    summary->set_layers(profile.geometry.layers);
    summary->set_kv_heads(profile.geometry.kv_heads);
    summary->set_head_dim(profile.geometry.head_dim);
    summary->set_segment_tokens(profile.segment_tokens);
    summary->set_bits_per_element(static_cast<float>(layout->BitsPerElement()));
  }
  return grpc::Status::OK;
}

}  // namespace fourierkv
