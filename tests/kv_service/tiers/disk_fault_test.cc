// A disk that fails: no crash, no false promise, and work again when the disk does.

#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <memory>
#include <random>
#include <utility>

#include "disk_fixture.h"

namespace fourierkv {
namespace {

using rocksdb::IOStatus;

struct Fault {
  enum Kind { kNone, kFull, kIoError, kShortWrite, kSyncError };
  std::atomic<Kind> kind{kNone};
};

class FaultyFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultyFile(std::unique_ptr<rocksdb::FSWritableFile>&& file, Fault* fault)
      : FSWritableFileOwnerWrapper(std::move(file)), fault_(fault) {}

  IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                  rocksdb::IODebugContext* context) override {
    switch (fault_->kind.load()) {
      case Fault::kFull:
        return IOStatus::NoSpace("injected");
      case Fault::kIoError:
        return IOStatus::IOError("injected");
      case Fault::kShortWrite:
        FSWritableFileOwnerWrapper::Append(rocksdb::Slice(data.data(), data.size() / 2), options,
                                           context)
            .PermitUncheckedError();
        return IOStatus::IOError("injected: short write");
      default:
        return FSWritableFileOwnerWrapper::Append(data, options, context);
    }
  }
  IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                  const rocksdb::DataVerificationInfo&, rocksdb::IODebugContext* context) override {
    return Append(data, options, context);
  }
  IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
    if (fault_->kind.load() == Fault::kSyncError) return IOStatus::IOError("injected: fsync");
    return FSWritableFileOwnerWrapper::Sync(options, context);
  }
  IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
    if (fault_->kind.load() == Fault::kSyncError) return IOStatus::IOError("injected: fsync");
    return FSWritableFileOwnerWrapper::Fsync(options, context);
  }

 private:
  Fault* fault_;
};

class FaultyFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultyFileSystem(Fault* fault)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), fault_(fault) {}
  const char* Name() const override { return "FaultyFileSystem"; }
  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           rocksdb::IODebugContext* context) override {
    const IOStatus status = FileSystemWrapper::NewWritableFile(name, options, file, context);
    if (status.ok()) *file = std::make_unique<FaultyFile>(std::move(*file), fault_);
    return status;
  }

 private:
  Fault* fault_;
};

class DiskFaultTest : public testing::TestWithParam<Fault::Kind> {
 protected:
  std::mt19937 rng_{std::random_device()()};
  Fault fault_;
  std::unique_ptr<rocksdb::Env> env_ =
      rocksdb::NewCompositeEnv(std::make_shared<FaultyFileSystem>(&fault_));
  DiskFixture disk_{int64_t{64} << 20, env_.get()};
};

TEST_P(DiskFaultTest, WritesFailWithAStatusAndNothingAcknowledgedIsLost) {
  ASSERT_TRUE(disk_.Reopen().ok());
  const auto before = disk_.Chain(rng_, 3);
  ASSERT_TRUE(disk_.tier().Store(before, absl::InfiniteFuture()).ok());
  fault_.kind = GetParam();
  const auto during = disk_.Chain(rng_, 3);
  const absl::Status failed = disk_.tier().Store(during, absl::InfiniteFuture());
  EXPECT_FALSE(failed.ok());
  EXPECT_FALSE(disk_.tier().Stats().healthy);
  EXPECT_GT(disk_.tier().Stats().write_errors, 0);
  // Reads go on; writes are refused at once or tried again, and never acknowledged.
  EXPECT_TRUE(disk_.HoldsAll(before));
  EXPECT_FALSE(disk_.tier().Store(during, absl::InfiniteFuture()).ok());
  EXPECT_FALSE(disk_.tier().Remove(std::span(&before[0].key, 1), absl::InfiniteFuture()).ok());
  disk_.Close();
  fault_.kind = Fault::kNone;
  ASSERT_TRUE(disk_.Reopen().ok());
  EXPECT_TRUE(disk_.HoldsAll(before));
  int held = 0;
  EXPECT_TRUE(disk_.HoldsNothingElse(during, &held));
  EXPECT_TRUE(disk_.tier().Store(during, absl::InfiniteFuture()).ok());
  EXPECT_TRUE(disk_.HoldsAll(during));
}

INSTANTIATE_TEST_SUITE_P(Kinds, DiskFaultTest,
                         testing::Values(Fault::kFull, Fault::kIoError, Fault::kShortWrite,
                                         Fault::kSyncError));

TEST_F(DiskFaultTest, GetsOverItWithoutBeingOpenedAgain) {
  ASSERT_TRUE(disk_.Reopen().ok());
  const auto chain = disk_.Chain(rng_, 2);
  fault_.kind = Fault::kSyncError;
  EXPECT_FALSE(disk_.tier().Store(chain, absl::InfiniteFuture()).ok());
  fault_.kind = Fault::kNone;
  // The first call after a failure tries to recover.
  const absl::Status again = disk_.tier().Store(chain, absl::InfiniteFuture());
  ASSERT_TRUE(again.ok()) << again;
  EXPECT_TRUE(disk_.tier().Stats().healthy);
  ASSERT_TRUE(disk_.Reopen().ok());
  EXPECT_TRUE(disk_.HoldsAll(chain));
}

TEST_F(DiskFaultTest, ADirectoryOnAFullDiskIsNotOpened) {
  fault_.kind = Fault::kFull;
  const absl::Status status = disk_.Reopen();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  fault_.kind = Fault::kNone;
  EXPECT_TRUE(disk_.Reopen().ok());
}

}  // namespace
}  // namespace fourierkv
