// A small file whose meaning is kept in memory and made again when the file has changed.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "compute/base/structured_log.h"

namespace fourierkv {

// What changes when a file is written, replaced, or behind a symbolic link that is turned.
struct FileSignature {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t size = -1;
  int64_t modified_ns = 0;

  bool operator==(const FileSignature&) const = default;
};

// NotFound, naming the path, if there is no such file.
absl::StatusOr<FileSignature> SignatureOf(const std::string& path);

// The whole file. NotFound if it cannot be read; InvalidArgument if it has more than `most` bytes.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t most);

// How long a changed file may go unnoticed.
inline constexpr absl::Duration kReloadInterval = absl::Milliseconds(250);
inline constexpr int64_t kMostReloadedBytes = 1 << 20;

// Thread safe.
template <typename T>
class ReloadedFile {
 public:
  using Parse = std::function<absl::StatusOr<T>(absl::string_view text)>;

  // Errors of reading and of `parse`, with `flag` and the path before them.
  static absl::StatusOr<std::unique_ptr<ReloadedFile>> Open(std::string flag, std::string path,
                                                            Parse parse) {
    std::unique_ptr<ReloadedFile> file(
        new ReloadedFile(std::move(flag), std::move(path), std::move(parse)));
    if (absl::Status s = file->Read(); !s.ok()) return s;
    return file;
  }

  // What the file says, at most kReloadInterval ago. A file that has become unreadable or wrong is
  // reported in the log once, and what it said before stays in force.
  std::shared_ptr<const T> Get() {
    std::lock_guard lock(mutex_);
    const absl::Time now = absl::Now();
    if (now < next_look_) return value_;
    next_look_ = now + kReloadInterval;
    const absl::StatusOr<FileSignature> seen = SignatureOf(path_);
    if (seen.ok() && *seen == signature_) return value_;
    const absl::Status status = Read();
    if (status.ok()) {
      Log(LogLevel::kInfo, "file.reloaded", {{"flag", flag_}, {"path", path_}});
      failed_ = false;
    } else if (!std::exchange(failed_, true)) {
      Log(LogLevel::kError, "file.reload_failed", {{"flag", flag_}, {"status", status}});
    }
    return value_;
  }

  // Whether the file as it is now could be read and means something; changes nothing. Errors as
  // Open's.
  absl::Status Check() const {
    const absl::StatusOr<std::string> text = ReadSmallFile(path_, kMostReloadedBytes);
    if (!text.ok()) return AtFault(text.status());
    const absl::StatusOr<T> value = parse_(*text);
    return value.ok() ? absl::OkStatus() : AtFault(value.status());
  }

 private:
  ReloadedFile(std::string flag, std::string path, Parse parse)
      : flag_(std::move(flag)), path_(std::move(path)), parse_(std::move(parse)) {}

  absl::Status AtFault(const absl::Status& s) const {
    return absl::Status(s.code(),
                        absl::StrCat(flag_, ": ", path_, ": ", absl::string_view(s.message())));
  }

  absl::Status Read() {
    // Taken before the content: a change in between is seen at the next look.
    const absl::StatusOr<FileSignature> signature = SignatureOf(path_);
    if (!signature.ok()) return AtFault(signature.status());
    absl::StatusOr<std::string> text = ReadSmallFile(path_, kMostReloadedBytes);
    if (!text.ok()) return AtFault(text.status());
    absl::StatusOr<T> value = parse_(*text);
    if (!value.ok()) {
      signature_ = *signature;  // not again before it changes
      return AtFault(value.status());
    }
    value_ = std::make_shared<const T>(*std::move(value));
    signature_ = *signature;
    return absl::OkStatus();
  }

  const std::string flag_;
  const std::string path_;
  const Parse parse_;
  std::mutex mutex_;  // guards what follows
  std::shared_ptr<const T> value_;
  FileSignature signature_;
  absl::Time next_look_ = absl::Now() + kReloadInterval;
  bool failed_ = false;
};

}  // namespace fourierkv
