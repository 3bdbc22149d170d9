#include "disk_fixture.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kv_service/core/blob_identity.h"

namespace fourierkv {

TemporaryDirectory::TemporaryDirectory() {
  std::string name = testing::TempDir() + "/fourierkv-disk-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) std::abort();
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> TemporaryDirectory::Files() const {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path_)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  return files;
}

DiskFixture::DiskFixture(int64_t limit_bytes, rocksdb::Env* env) {
  options_.path = directory_.path();
  options_.limit_bytes = limit_bytes;
  options_.env = env;
}

absl::Status DiskFixture::Reopen() {
  tier_.reset();
  profiles_ = std::make_unique<ProfileStore>();
  namespaces_ = std::make_unique<NamespaceDirectory>(profiles_.get());
  auto tier = OpenDiskTier(options_, profiles_.get(), namespaces_.get());
  if (tier.ok()) tier_ = *std::move(tier);
  return tier.status();
}

std::vector<StoredSegment> DiskFixture::Chain(std::mt19937& rng, int segments, int tail_tokens) {
  auto chain = MakeChain(SmallContext(true, "salt"),
                         RandomTokens(rng, int64_t{segments} * kS + tail_tokens));
  for (StoredSegment& segment : chain) {
    segment.forms[SegmentForm::kExact] = RandomForm(rng, segment, SegmentForm::kExact, *budget_);
    if (segment.tail || segment.index == 0) continue;
    segment.forms[SegmentForm::kCompact] =
        RandomForm(rng, segment, SegmentForm::kCompact, *budget_);
  }
  return chain;
}

absl::StatusOr<FormPtr> DiskFixture::LoadForm(const StoredSegment& segment, SegmentForm form,
                                              absl::Time deadline) {
  const TierWant want{.segment = &segment, .form = form};
  auto results = tier_->Load(std::span(&want, 1), *budget_, deadline);
  return std::move(results.front());
}

bool DiskFixture::Holds(const StoredSegment& segment) {
  const auto described = tier_->Describe(std::span(&segment.key, 1), absl::InfiniteFuture());
  return described.ok() && described->front().has_value();
}

testing::AssertionResult DiskFixture::HoldsNothingElse(std::span<const StoredSegment> chain,
                                                       int* held) {
  *held = 0;
  for (const StoredSegment& segment : chain) {
    for (const SegmentForm form : kHeldForms) {
      if (segment.forms[form] == nullptr) continue;
      const auto loaded = LoadForm(segment, form);
      if (!loaded.ok()) continue;
      ++*held;
      if (!SameBytes(**loaded, *segment.forms[form])) {
        return testing::AssertionFailure() << "wrong bytes of segment " << segment.index;
      }
    }
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult DiskFixture::HoldsAll(std::span<const StoredSegment> chain) {
  int all = 0;
  for (const StoredSegment& segment : chain) {
    for (const SegmentForm form : kHeldForms) all += segment.forms[form] != nullptr ? 1 : 0;
  }
  int held = 0;
  if (auto right = HoldsNothingElse(chain, &held); !right) return right;
  if (held == all) return testing::AssertionSuccess();
  return testing::AssertionFailure() << held << " of " << all << " forms are held";
}

bool SameBytes(const FormBlobs& a, const FormBlobs& b) {
  if (a.form() != b.form() || a.layers() != b.layers()) return false;
  for (int layer = 0; layer < a.layers(); ++layer) {
    for (const Part part : kParts) {
      const auto x = a.blob(layer, part)->bytes();
      const auto y = b.blob(layer, part)->bytes();
      if (x.size() != y.size() || std::memcmp(x.data(), y.data(), x.size()) != 0) return false;
    }
  }
  return true;
}

FormPtr RandomForm(std::mt19937& rng, const StoredSegment& segment, SegmentForm form,
                   MemoryBudget& budget) {
  std::vector<FormPart> parts;
  const float error = IsExactData(form) ? 0 : 0.125f;
  for (int layer = 0; layer < segment.context->ns.geometry.layers; ++layer) {
    for (const Part part : kParts) {
      const BlobHeader header = ExpectedHeader(segment, form, layer, part, error);
      auto blob = BlobBuffer::Allocate(
          budget, static_cast<int64_t>(kBlobHeaderBytes + header.payload_bytes));
      if (!blob.ok()) std::abort();
      for (std::byte& byte : (*blob)->bytes()) byte = static_cast<std::byte>(rng());
      SealBlob(header, (*blob)->bytes());
      parts.push_back({*std::move(blob), error});
    }
  }
  return std::make_shared<FormBlobs>(form, std::move(parts));
}

}  // namespace fourierkv
