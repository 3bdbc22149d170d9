// fourierkv.v1.ProfileService over a ProfileStore.

#pragma once

#include "fourierkv/v1/profile_service.grpc.pb.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/core/tiered_store.h"

namespace fourierkv {

// Thread safe. `profiles` must outlive it.
class ProfileServiceImpl final : public v1::ProfileService::Service {
 public:
  // Profiles that are put are kept in `tiers` too.
  explicit ProfileServiceImpl(ProfileStore* profiles, TieredStore* tiers = nullptr)
      : profiles_(profiles), tiers_(tiers) {}

  grpc::Status PutProfile(grpc::ServerContext* context, const v1::PutProfileRequest* request,
                          v1::PutProfileResponse* response) override;
  grpc::Status GetProfile(grpc::ServerContext* context, const v1::GetProfileRequest* request,
                          v1::GetProfileResponse* response) override;
  grpc::Status ListProfiles(grpc::ServerContext* context, const v1::ListProfilesRequest* request,
                            v1::ListProfilesResponse* response) override;

 private:
  ProfileStore* profiles_;
  TieredStore* tiers_;
};

}  // namespace fourierkv
