// A file mapped read-only.

#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// Immutable. The file must not be truncated by others while it is mapped.
class MappedFile {
 public:
  // NotFound; PermissionDenied; InvalidArgument for anything but a regular file or one that is
  // larger than `max_bytes`. Every message names the path.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path,
                                                          size_t max_bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  absl::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const std::byte* data_;
  size_t size_;
};

}  // namespace fourierkv
