// Certificates in files: checked when a program starts, and watched while it runs.

#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace grpc::experimental {
class FileWatcherCertificateProvider;
}

namespace fourierkv {

// PEM files; an empty path means none.
struct TlsFiles {
  std::string certificate;  // of this program, with the intermediate ones (--tls-cert)
  std::string key;          // of that certificate (--tls-key)
  std::string authorities;  // whose certificates of others are trusted
  std::string authorities_flag = "--tls-ca";
};

// How often changed files are looked for. New connections use what is then there.
inline constexpr int kTlsReloadSeconds = 1;

// InvalidArgument, naming the flag and the file, unless certificate and key are both given or
// neither is, can be read and belong together, and the authorities are at least one certificate.
absl::Status CheckTlsFiles(const TlsFiles& files);

// Keeps what gRPC uses as the files are. Files that cannot be read are left out until they can.
std::shared_ptr<grpc::experimental::FileWatcherCertificateProvider> WatchTlsFiles(
    const TlsFiles& files);

}  // namespace fourierkv
