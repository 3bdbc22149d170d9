#include "kv_service/rpc/build_info.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

const char* Architecture() {
#if defined(__x86_64__)
  return "x86-64";
#elif defined(__aarch64__)
  return "arm64";
#else
  return "other";
#endif
}

std::string Compiler() {
#if defined(__clang__)
  return absl::StrCat("Clang ", __clang_version__);
#else
  return absl::StrCat("GCC ", __VERSION__);
#endif
}

}  // namespace

v1::GetBuildInfoResponse BuildInfo() {
  v1::GetBuildInfoResponse info;
  info.set_version(FOURIERKV_VERSION);
  info.set_revision(FOURIERKV_REVISION);
  info.set_build_type(FOURIERKV_BUILD_TYPE);
  info.set_compiler(Compiler());
  info.set_architecture(Architecture());
  info.set_grpc_version(grpc::Version());
  return info;
}

}  // namespace fourierkv
