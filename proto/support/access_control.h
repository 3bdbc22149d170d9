// Who may call what: the one place where every call of a server is let in or refused.

#pragma once

#include <grpcpp/security/auth_metadata_processor.h>

#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/base/content_hash.h"
#include "proto/support/reloaded_file.h"
#include "proto/support/token_verifier.h"

namespace grpc {
class ServerContextBase;
}

namespace fourierkv {

// Whom a call is made for.
struct Caller {
  std::string tenant;  // empty: nobody in particular, where tokens are not used
  Roles roles = Roles::All();
};

// Judges the token of every call before the call reaches a handler. Thread safe.
//
// The roles that methods need are in a table in the .cc file; a method that is not in it is refused
// to everybody. Health needs no token; reflection needs any.
//   UNAUTHENTICATED    no token, or one that is not valid
//   PERMISSION_DENIED  the token lacks the method's role, or the method is unknown
class AccessControl final : public grpc::AuthMetadataProcessor {
 public:
  // `keys_file` is what ParseVerificationKeys reads; it is read again when it changes.
  // InvalidArgument or NotFound, naming --auth-keys or --auth-audience.
  static absl::StatusOr<std::shared_ptr<AccessControl>> Create(const std::string& keys_file,
                                                               const std::string& audience);

  // Whether the file of keys could be read again now.
  absl::Status CheckFile() const { return verifier_->Check(); }

  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* connection,
                       OutputMetadata* consumed, OutputMetadata* response) override;

  // The caller of a call that is being handled. Unauthenticated if its token has expired since.
  absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context);

 private:
  explicit AccessControl(std::unique_ptr<ReloadedFile<TokenVerifier>> verifier)
      : verifier_(std::move(verifier)) {}

  // `authorization` is the metadata's value: "Bearer TOKEN".
  absl::StatusOr<TokenClaims> Authenticate(absl::string_view authorization);

  const std::unique_ptr<ReloadedFile<TokenVerifier>> verifier_;
  std::mutex mutex_;  // guards what follows
  // Tokens that `cached_for_` verified, by their hash. Their times are checked at every use.
  absl::flat_hash_map<Digest, TokenClaims> verified_;
  std::shared_ptr<const TokenVerifier> cached_for_;
};

}  // namespace fourierkv
