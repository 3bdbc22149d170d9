#include "kv_service/tiers/disk_contents.h"

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "compute/base/structured_log.h"
#include "kv_service/core/segment_record.h"

namespace fourierkv {
namespace {

struct Found {
  uint64_t sequence;
  TierSegment segment;
};

// Fills the index with those whose parents are there; the others are `lost`.
DiskIndex MakeIndex(std::vector<Found> found, std::vector<BlockKey>& lost) {
  // Parents first; then in the order of their age, which their use would else be.
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::tie(a.segment.segment.index, a.sequence) <
           std::tie(b.segment.segment.index, b.sequence);
  });
  std::vector<std::pair<uint64_t, BlockKey>> ages;
  DiskIndex index;
  for (const Found& f : found) {
    if (index.HasParent(f.segment.segment)) {
      index.Put(f.segment);
      ages.emplace_back(f.sequence, f.segment.segment.key);
    } else {
      lost.push_back(f.segment.segment.key);
    }
  }
  std::sort(ages.begin(), ages.end());
  for (const auto& [sequence, key] : ages) index.Touch(key, absl::InfinitePast());
  return index;
}

}  // namespace

absl::StatusOr<DiskContents> ReadDiskContents(DiskDatabase& database, ProfileStore& profiles,
                                              NamespaceDirectory& namespaces) {
  if (auto s = database.DropUnfinished(); !s.ok()) return s;
  DiskContents contents;
  const absl::Status profiles_read = database.ForEachProfile([&](absl::string_view json) {
    auto layout = profiles.Put(json);
    if (layout.ok()) {
      contents.profiles.insert((*layout)->id());
    } else {
      Log(LogLevel::kError, "disk_tier.profile_lost", {{"status", layout.status()}});
    }
  });
  if (!profiles_read.ok()) return profiles_read;

  std::vector<Found> found;
  std::vector<BlockKey> lost;
  const auto resolve = [&](absl::string_view ns) { return namespaces.Resolve(ns); };
  const absl::Status read = database.ForEachDescription(
      [&](const BlockKey& key, uint64_t sequence, absl::string_view bytes) {
        contents.sequence = std::max(contents.sequence, sequence);
        auto segment = DecodeDescription(bytes, resolve);
        if (segment.ok() && segment->segment.key == key) {
          found.push_back({sequence, *std::move(segment)});
        } else {
          lost.push_back(key);
        }
      });
  if (!read.ok()) return read;
  contents.index = MakeIndex(std::move(found), lost);
  for (const BlockKey& key : lost) {
    DiskDatabase::Batch batch(database);
    batch.DeleteDescription(key);
    batch.DeleteAllChunks(key);  // which cannot be counted any more
    if (auto s = database.Write(batch); !s.ok()) return s;
  }
  contents.lost = lost.size();
  return contents;
}

}  // namespace fourierkv
