#include "kv_service/tiers/disk_database.h"

#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/structured_log.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/record_bytes.h"
#include "kv_service/tiers/disk_directory.h"

namespace fourierkv {
namespace {

// First bytes of the keys of the default column family.
constexpr char kDescriptionTag = 'd';
constexpr char kMarkTag = 'm';
constexpr char kProfileTag = 'p';
constexpr uint64_t kMaxChunks = uint64_t{1} << 24;  // more than any record has
// The share of files, oldest first, that one collection rewrites: garbage gathers in old ones.
constexpr double kCollectedShare = 0.3;

absl::Status ToStatus(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = absl::StrCat("disk tier: ", status.ToString());
  if (status.IsNotFound()) return absl::NotFoundError(text);
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(text);
  if (status.IsCorruption()) return absl::DataLossError(text);
  if (status.IsTimedOut()) return absl::DeadlineExceededError(text);
  return absl::UnavailableError(text);
}

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }

absl::string_view FromSlice(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

std::string MarkKey(const BlockKey& key, SegmentForm form) {
  std::string name = kMarkTag + key.ToString();
  name.push_back(static_cast<char>(form));
  return name;
}

// Chunks of one segment, and of one record, follow each other.
std::string ChunkKey(const BlockKey& key, SegmentForm form, uint32_t number) {
  std::string name = key.ToString();
  name.push_back(static_cast<char>(form));
  for (int shift = 24; shift >= 0; shift -= 8) name.push_back(static_cast<char>(number >> shift));
  return name;
}

// Under what a chunk is sealed: another tag than those of the default column family.
std::string SealedChunkName(const std::string& chunk_key) { return 'c' + chunk_key; }

// Lets the crash test end the process in the middle of RocksDB's own work; logs its failures.
class Listener : public rocksdb::EventListener {
 public:
  void OnFlushBegin(rocksdb::DB*, const rocksdb::FlushJobInfo&) override {
    KillPoint("rocksdb.flush_begin");
  }
  void OnFlushCompleted(rocksdb::DB*, const rocksdb::FlushJobInfo&) override {
    KillPoint("rocksdb.flush_done");
  }
  void OnCompactionBegin(rocksdb::DB*, const rocksdb::CompactionJobInfo&) override {
    KillPoint("rocksdb.compaction_begin");
  }
  void OnCompactionCompleted(rocksdb::DB*, const rocksdb::CompactionJobInfo&) override {
    KillPoint("rocksdb.compaction_done");
  }
  void OnBlobFileCreationStarted(const rocksdb::BlobFileCreationBriefInfo&) override {
    KillPoint("rocksdb.blob_file_begin");
  }
  void OnBlobFileCreated(const rocksdb::BlobFileCreationInfo&) override {
    KillPoint("rocksdb.blob_file_done");
  }
  void OnBackgroundError(rocksdb::BackgroundErrorReason, rocksdb::Status* error) override {
    Log(LogLevel::kError, "disk_tier.background_error", {{"status", ToStatus(*error)}});
  }
};

rocksdb::Options DatabaseOptions(rocksdb::Env* env) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  if (env != nullptr) options.env = env;
  options.max_background_jobs = 4;
  options.bytes_per_sync = 1 << 20;  // no bursts of write-back in the way of a commit's fsync
  options.wal_bytes_per_sync = 1 << 20;
  options.max_total_wal_size = uint64_t{256} << 20;  // bounds what a restart replays
  options.atomic_flush = true;
  options.keep_log_file_num = 4;
  options.max_log_file_size = 4 << 20;
  options.track_and_verify_wals_in_manifest = true;
  options.listeners.push_back(std::make_shared<Listener>());
  return options;
}

rocksdb::ColumnFamilyOptions IndexOptions() {
  rocksdb::ColumnFamilyOptions options;
  options.write_buffer_size = 16 << 20;
  rocksdb::BlockBasedTableOptions table;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

rocksdb::ColumnFamilyOptions PayloadOptions() {
  rocksdb::ColumnFamilyOptions options;
  options.compression = rocksdb::kNoCompression;  // payload is compressed, or not compressible
  options.write_buffer_size = 64 << 20;
  options.max_write_buffer_number = 3;
  options.enable_blob_files = true;
  options.min_blob_size = 4096;
  options.blob_file_size = uint64_t{256} << 20;
  options.blob_compression_type = rocksdb::kNoCompression;
  // Garbage is collected when it is worth it (CollectGarbage), not by every compaction.
  options.enable_blob_garbage_collection = false;
  return options;
}

absl::Status OpenError(const std::string& path, const rocksdb::Status& status) {
  const std::string text = status.ToString();
  if (status.IsIOError() && text.find("LOCK") != std::string::npos) {
    if (text.find("ermission") != std::string::npos || text.find("ead-only") != std::string::npos) {
      return absl::PermissionDeniedError(
          absl::StrCat("disk tier: ", path, " cannot be written: ", text));
    }
    return absl::FailedPreconditionError(
        absl::StrCat("disk tier: ", path, " is in use by another process: ", text));
  }
  if (status.IsCorruption()) {
    return absl::DataLossError(absl::StrCat("disk tier: ", path, " is damaged: ", text,
                                            "; move it away to start with an empty one"));
  }
  return ToStatus(status);
}

}  // namespace

struct DiskDatabase::Rep {
  ~Rep() {
    if (db == nullptr) return;
    for (rocksdb::ColumnFamilyHandle* handle : families) {
      db->DestroyColumnFamilyHandle(handle).PermitUncheckedError();
    }
    db->Close().PermitUncheckedError();
  }

  rocksdb::ColumnFamilyHandle* index() const { return families[0]; }
  rocksdb::ColumnFamilyHandle* payload() const { return families[1]; }

  int64_t Property(const std::string& name) const {
    uint64_t value = 0;
    return db->GetIntProperty(payload(), name, &value) ? static_cast<int64_t>(value) : 0;
  }

  // Calls `visit` with every key and value that begin with `tag`; the key without it.
  absl::Status ForEach(char tag,
                       const std::function<void(absl::string_view, absl::string_view)>& visit) {
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    options.readahead_size = 4 << 20;
    const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(options, index()));
    for (it->Seek(rocksdb::Slice(&tag, 1)); it->Valid(); it->Next()) {
      const absl::string_view key = FromSlice(it->key());
      if (key.empty() || key.front() != tag) break;
      visit(key.substr(1), FromSlice(it->value()));
    }
    return ToStatus(it->status());
  }

  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> families;
  std::shared_ptr<const ValueCipher> cipher;
};

struct DiskDatabase::Batch::Rep {
  // Only memory fails here, and that ends the process.
  static void Added(const rocksdb::Status& status) { status.PermitUncheckedError(); }

  // The value, sealed if need be; empty after a failure, which Write returns.
  std::string Seal(const std::string& name, std::string value) {
    if (cipher == nullptr) return value;
    absl::StatusOr<std::string> sealed = cipher->Seal(name, value);
    status.Update(sealed.status());
    return sealed.ok() ? *std::move(sealed) : std::string();
  }

  rocksdb::ColumnFamilyHandle* index;
  rocksdb::ColumnFamilyHandle* payload;
  const ValueCipher* cipher;  // null: nothing is encrypted
  absl::Status status{};
  rocksdb::WriteBatch batch{};
};

DiskDatabase::Batch::Batch(const DiskDatabase& database)
    : rep_(new Rep{database.rep_->index(), database.rep_->payload(), database.rep_->cipher.get()}) {
}
DiskDatabase::Batch::~Batch() = default;

void DiskDatabase::Batch::PutProfile(const Digest& id, absl::string_view json) {
  Rep::Added(rep_->batch.Put(rep_->index, kProfileTag + id.ToString(), ToSlice(json)));
}

void DiskDatabase::Batch::PutDescription(const BlockKey& key, uint64_t sequence,
                                         absl::string_view description) {
  std::string value;
  ByteWriter(value).U64(sequence);
  value.append(description.data(), description.size());
  const std::string name = kDescriptionTag + key.ToString();
  Rep::Added(rep_->batch.Put(rep_->index, name, rep_->Seal(name, std::move(value))));
}

void DiskDatabase::Batch::DeleteDescription(const BlockKey& key) {
  Rep::Added(rep_->batch.Delete(rep_->index, kDescriptionTag + key.ToString()));
}

void DiskDatabase::Batch::PutChunk(const BlockKey& key, SegmentForm form, uint32_t number,
                                   const Pieces& pieces) {
  const std::string name = ChunkKey(key, form, number);
  if (rep_->cipher != nullptr) {
    const absl::StatusOr<std::string> sealed = rep_->cipher->Seal(SealedChunkName(name), pieces);
    rep_->status.Update(sealed.status());
    if (sealed.ok()) Rep::Added(rep_->batch.Put(rep_->payload, name, *sealed));
    return;
  }
  const rocksdb::Slice name_slice(name);
  std::vector<rocksdb::Slice> slices;
  slices.reserve(pieces.size());
  for (const auto piece : pieces) {
    slices.emplace_back(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  Rep::Added(rep_->batch.Put(rep_->payload, rocksdb::SliceParts(&name_slice, 1),
                             rocksdb::SliceParts(slices.data(), static_cast<int>(slices.size()))));
}

void DiskDatabase::Batch::DeleteChunks(const BlockKey& key, SegmentForm form, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    Rep::Added(rep_->batch.Delete(rep_->payload, ChunkKey(key, form, static_cast<uint32_t>(i))));
  }
}

void DiskDatabase::Batch::DeleteAllChunks(const BlockKey& key) {
  std::string end = key.ToString();
  end.push_back('\xff');  // behind every form
  Rep::Added(rep_->batch.DeleteRange(rep_->payload, key.ToString(), end));
}

void DiskDatabase::Batch::Mark(const BlockKey& key, SegmentForm form, int64_t count) {
  std::string value;
  ByteWriter(value).U64(static_cast<uint64_t>(count));
  Rep::Added(rep_->batch.Put(rep_->index, MarkKey(key, form), value));
}

void DiskDatabase::Batch::Unmark(const BlockKey& key, SegmentForm form) {
  Rep::Added(rep_->batch.Delete(rep_->index, MarkKey(key, form)));
}

absl::StatusOr<std::unique_ptr<DiskDatabase>> DiskDatabase::Open(
    const std::string& path, rocksdb::Env* env, std::shared_ptr<const ValueCipher> cipher) {
  if (auto s = ClaimDiskDirectory(path, cipher != nullptr); !s.ok()) return s;
  auto rep = std::make_unique<Rep>();
  rep->cipher = std::move(cipher);
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(
      DatabaseOptions(env), path,
      {{rocksdb::kDefaultColumnFamilyName, IndexOptions()}, {"payload", PayloadOptions()}},
      &rep->families, &db);
  rep->db.reset(db);
  if (!status.ok()) return OpenError(path, status);
  return std::unique_ptr<DiskDatabase>(new DiskDatabase(std::move(rep)));
}

DiskDatabase::DiskDatabase(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
DiskDatabase::~DiskDatabase() { KillPoint("database.close"); }

absl::Status DiskDatabase::Write(Batch& batch) {
  if (!batch.rep_->status.ok()) return batch.rep_->status;
  return ToStatus(rep_->db->Write(rocksdb::WriteOptions(), &batch.rep_->batch));
}

absl::Status DiskDatabase::Sync() { return ToStatus(rep_->db->SyncWAL()); }

absl::Status DiskDatabase::ReadChunk(
    const BlockKey& key, SegmentForm form, uint32_t number, absl::Time deadline,
    const std::function<absl::Status(std::span<const std::byte>)>& add) {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  if (deadline != absl::InfiniteFuture()) {
    options.deadline = std::chrono::microseconds(absl::ToUnixMicros(deadline));
  }
  rocksdb::PinnableSlice value;
  const std::string name = ChunkKey(key, form, number);
  const rocksdb::Status status = rep_->db->Get(options, rep_->payload(), name, &value);
  if (!status.ok()) return ToStatus(status);
  if (rep_->cipher != nullptr) {
    const auto opened = rep_->cipher->Open(SealedChunkName(name), FromSlice(value));
    // One whose key is no longer given is lost, too.
    if (!opened.ok()) return absl::DataLossError(opened.status().message());
    return add(std::as_bytes(std::span(opened->data(), opened->size())));
  }
  return add(std::as_bytes(std::span(value.data(), value.size())));
}

absl::Status DiskDatabase::ForEachProfile(
    const std::function<void(absl::string_view json)>& visit) {
  return rep_->ForEach(kProfileTag,
                       [&](absl::string_view, absl::string_view json) { visit(json); });
}

absl::Status DiskDatabase::ForEachDescription(
    const std::function<void(const BlockKey&, uint64_t sequence, absl::string_view)>& visit) {
  int64_t opened = 0;
  int64_t of_unknown_keys = 0;
  absl::Status unknown;
  const absl::Status read =
      rep_->ForEach(kDescriptionTag, [&](absl::string_view name, absl::string_view value) {
        const auto key = Digest::FromRaw(name, "key");
        if (!key.ok()) return;
        absl::StatusOr<std::string> plain = std::string();
        if (rep_->cipher != nullptr) {
          plain = rep_->cipher->Open(kDescriptionTag + key->ToString(), value);
          value = plain.ok() ? absl::string_view(*plain) : absl::string_view();
          opened += plain.ok() ? 1 : 0;
          if (absl::IsFailedPrecondition(plain.status())) {
            ++of_unknown_keys;
            unknown = plain.status();
          }
        }
        const uint64_t sequence = ByteReader(value).U64();
        visit(*key, sequence, value.substr(std::min(value.size(), sizeof sequence)));
      });
  if (!read.ok() || unknown.ok()) return read;
  if (opened == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        unknown.message(),
        ", and none opens: add that key to --disk-key-file, or move the directory away"));
  }
  Log(LogLevel::kWarning, "disk_tier.keys_gone",
      {{"segments", of_unknown_keys}, {"status", unknown}});
  return absl::OkStatus();
}

absl::Status DiskDatabase::DropUnfinished() {
  std::vector<std::pair<std::string, int64_t>> marks;
  const absl::Status read =
      rep_->ForEach(kMarkTag, [&](absl::string_view name, absl::string_view value) {
        const uint64_t count = ByteReader(value).U64();
        marks.emplace_back(std::string(name), static_cast<int64_t>(std::min(count, kMaxChunks)));
      });
  if (!read.ok()) return read;
  for (const auto& [name, count] : marks) {
    if (name.size() != sizeof(Digest::bytes) + 1) continue;
    Batch batch(*this);
    const auto key = Digest::FromRaw(absl::string_view(name).substr(0, name.size() - 1), "key");
    const auto form = static_cast<SegmentForm>(name.back());
    batch.DeleteChunks(*key, form, count);
    batch.Unmark(*key, form);
    if (auto s = Write(batch); !s.ok()) return s;
  }
  return absl::OkStatus();
}

int64_t DiskDatabase::PayloadFileBytes() const {
  return rep_->Property(rocksdb::DB::Properties::kLiveBlobFileSize);
}

int64_t DiskDatabase::PayloadGarbageBytes() const {
  return rep_->Property(rocksdb::DB::Properties::kLiveBlobFileGarbageSize);
}

absl::Status DiskDatabase::CollectGarbage() {
  KillPoint("database.collect_garbage");
  rocksdb::CompactRangeOptions options;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  options.blob_garbage_collection_age_cutoff = kCollectedShare;
  options.exclusive_manual_compaction = false;
  return ToStatus(rep_->db->CompactRange(options, rep_->payload(), nullptr, nullptr));
}

absl::Status DiskDatabase::Recover() {
  if (auto s = ToStatus(rep_->db->Resume()); !s.ok()) return s;
  // What a failed fsync left behind cannot be trusted to its log: files of their own are written.
  return ToStatus(rep_->db->Flush(rocksdb::FlushOptions(), rep_->families));
}

}  // namespace fourierkv
