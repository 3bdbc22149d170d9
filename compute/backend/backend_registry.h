// Which backends are linked into this program.

#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/backend/compute_backend.h"

namespace fourierkv {

// Makes a backend with `threads` host threads, 0 = one per hardware thread. Unavailable if the
// device is missing on this machine.
using BackendFactory = absl::StatusOr<std::unique_ptr<ComputeBackend>> (*)(int threads);

// A file-level constant of this type in a backend's source file registers the backend. "cpu" is
// always there; others live in CMake OBJECT libraries, which linkers keep whole: linking one is
// enough.
class BackendRegistration {
 public:
  // `device` must be unique and outlive the program (a literal).
  BackendRegistration(const char* device, BackendFactory factory);
};

}  // namespace fourierkv
