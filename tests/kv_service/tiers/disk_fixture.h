// A disk tier in a directory of its own, which can be closed, damaged and opened again.

#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/tiers/disk_tier.h"
#include "tests/kv_service/core/core_fixtures.h"

namespace fourierkv {

// A directory that is gone with this object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  const std::string& path() const { return path_; }
  // Names of all files in it, at any depth.
  std::vector<std::string> Files() const;

 private:
  std::string path_;
};

class DiskFixture {
 public:
  explicit DiskFixture(int64_t limit_bytes = int64_t{64} << 20, rocksdb::Env* env = nullptr);

  // Closes the tier if it is open. Knows no profile before.
  absl::Status Reopen();
  void Close() { tier_.reset(); }
  SegmentTier& tier() { return *tier_; }
  const std::string& path() const { return directory_.path(); }
  const TemporaryDirectory& directory() const { return directory_; }
  DiskTierOptions& options() { return options_; }
  MemoryBudget& budget() { return *budget_; }
  ProfileStore& profiles() { return *profiles_; }

  // `segments` segments of one sequence, all EXACT, full ones behind the first COMPACT too, with
  // bytes of their own.
  std::vector<StoredSegment> Chain(std::mt19937& rng, int segments, int tail_tokens = 0);

  // Whether all forms of all of `chain` are given back as they are.
  testing::AssertionResult HoldsAll(std::span<const StoredSegment> chain);
  // Whether what is given back of `chain` is as it is; how many forms were.
  testing::AssertionResult HoldsNothingElse(std::span<const StoredSegment> chain, int* held);

  absl::StatusOr<FormPtr> LoadForm(const StoredSegment& segment, SegmentForm form,
                                   absl::Time deadline = absl::InfiniteFuture());
  bool Holds(const StoredSegment& segment);

 private:
  TemporaryDirectory directory_;
  DiskTierOptions options_;
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("test", int64_t{256} << 20);
  std::unique_ptr<ProfileStore> profiles_;
  std::unique_ptr<NamespaceDirectory> namespaces_;
  std::unique_ptr<SegmentTier> tier_;
};

// Whether the blobs of both are the same bytes.
bool SameBytes(const FormBlobs& a, const FormBlobs& b);

// A form like MakeForm's, with random payload.
FormPtr RandomForm(std::mt19937& rng, const StoredSegment& segment, SegmentForm form,
                   MemoryBudget& budget);

}  // namespace fourierkv
