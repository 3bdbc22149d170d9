#include "proto/support/tls_files.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/strings/str_cat.h"
#include "proto/support/openssl_ptr.h"
#include "proto/support/reloaded_file.h"

namespace fourierkv {
namespace {

using X509Ptr = OpensslPtr<X509, X509_free>;

absl::Status AtFault(const std::string& flag, const std::string& path, absl::string_view why) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, ": ", why));
}

absl::StatusOr<X509Ptr> FirstCertificate(const std::string& flag, const std::string& path) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMostReloadedBytes);
  if (!text.ok()) return AtFault(flag, path, absl::string_view(text.status().message()));
  const BioPtr bio(BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
  X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) return AtFault(flag, path, "holds no certificate in PEM");
  return certificate;
}

// Refuses encrypted keys: nobody is there to type a password.
int NoPassword(char* /*buffer*/, int /*size*/, int /*writing*/, void* /*data*/) { return -1; }

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& files) {
  if (files.certificate.empty() != files.key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together; one is missing");
  }
  if (!files.authorities.empty()) {
    const auto first = FirstCertificate(files.authorities_flag, files.authorities);
    if (!first.ok()) return first.status();
  }
  if (files.certificate.empty()) return absl::OkStatus();
  const absl::StatusOr<X509Ptr> certificate = FirstCertificate("--tls-cert", files.certificate);
  if (!certificate.ok()) return certificate.status();
  const absl::StatusOr<std::string> text = ReadSmallFile(files.key, kMostReloadedBytes);
  if (!text.ok()) {
    return AtFault("--tls-key", files.key, absl::string_view(text.status().message()));
  }
  const BioPtr bio(BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
  const PkeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassword, nullptr));
  if (key == nullptr) {
    return AtFault("--tls-key", files.key, "holds no private key in PEM without a password");
  }
  if (X509_check_private_key(certificate->get(), key.get()) != 1) {
    return AtFault("--tls-key", files.key,
                   absl::StrCat("is not the key of the certificate in ", files.certificate));
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::experimental::FileWatcherCertificateProvider> WatchTlsFiles(
    const TlsFiles& files) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      files.key, files.certificate, files.authorities, kTlsReloadSeconds);
}

}  // namespace fourierkv
