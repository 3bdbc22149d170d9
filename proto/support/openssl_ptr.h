// Ownership of OpenSSL's objects.

#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>

#include <memory>

namespace fourierkv {

template <auto Free>
struct OpensslDeleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
template <typename T, auto Free>
using OpensslPtr = std::unique_ptr<T, OpensslDeleter<Free>>;

using BioPtr = OpensslPtr<BIO, BIO_free_all>;
using PkeyPtr = OpensslPtr<EVP_PKEY, EVP_PKEY_free>;

}  // namespace fourierkv
