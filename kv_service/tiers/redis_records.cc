#include "kv_service/tiers/redis_records.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

// How long chunks outlive their manifest, so that what is visible is whole.
constexpr absl::Duration kChunkSlack = absl::Minutes(5);
// Of chunks whose manifest is not written yet.
constexpr absl::Duration kUnfinishedTtl = absl::Minutes(10);

constexpr char kDropIfSame[] =
    "if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";
constexpr char kReplaceIfSame[] =
    "if redis.call('GET',KEYS[1])==ARGV[1] then "
    "redis.call('SET',KEYS[1],ARGV[2],'KEEPTTL') return 1 end return 0";
// Never shortens: it may be pinned for longer. 0 if it is gone.
constexpr char kLengthen[] =
    "local left=redis.call('PTTL',KEYS[1]) if left==-2 then return 0 end "
    "if left>=0 and left<tonumber(ARGV[1]) then redis.call('PEXPIRE',KEYS[1],ARGV[1]) end return 1";

RedisCommand Script(const char* script, const std::string& key, std::vector<std::string> values) {
  RedisCommand command;
  command.words = {"EVAL", script, "1", key};
  for (std::string& value : values) command.words.push_back(std::move(value));
  command.key = key;
  return command;
}

std::string Milliseconds(absl::Duration duration) {
  return absl::StrCat(std::max<int64_t>(absl::ToInt64Milliseconds(duration), 1));
}

}  // namespace

// A record on its way to being visible.
struct RedisRecords::Publication {
  const Writing* writing;
  RedisRecordPlace place;
  std::string manifest;
};

RedisRecords::RedisRecords(RedisClient* client, RedisRecordOptions options)
    : client_(client), options_(std::move(options)), keys_(options_.key_prefix) {}

absl::Duration RedisRecords::LifeOf(const RedisRecordPlace& place, absl::Duration at_least) const {
  return std::min(std::max(options_.ttl, at_least), place.expires - absl::Now());
}

std::string RedisRecords::Ttl(const RedisRecordPlace& place, absl::Duration at_least) const {
  return Milliseconds(LifeOf(place, at_least));
}

std::string RedisRecords::ChunkTtl(const RedisRecordPlace& place, absl::Duration at_least) const {
  return Milliseconds(std::max(LifeOf(place, at_least), absl::ZeroDuration()) + kChunkSlack);
}

absl::Status RedisRecords::RunAll(std::span<const RedisCommand> commands, absl::Time deadline) {
  for (const auto& reply : client_->Run(commands, deadline)) {
    if (!reply.ok()) return reply.status();
  }
  return absl::OkStatus();
}

std::vector<absl::StatusOr<RedisRecords::Stored>> RedisRecords::ReadManifests(
    std::span<const RedisRecordName> names, absl::Time deadline) {
  std::vector<RedisCommand> commands;
  commands.reserve(names.size());
  for (const RedisRecordName& name : names) {
    commands.push_back(RedisCommand::Of({"GET", keys_.Manifest(name)}));
  }
  std::vector<absl::StatusOr<Stored>> results;
  results.reserve(names.size());
  for (auto& reply : client_->Run(commands, deadline)) {
    if (!reply.ok()) {
      results.push_back(reply.status());
    } else if (!reply->IsString()) {
      results.push_back(absl::NotFoundError("Redis has no such record"));
    } else {
      Stored stored{.raw = std::move(reply->text), .manifest = std::nullopt};
      auto manifest = DecodeRedisManifest(stored.raw);
      if (manifest.ok()) stored.manifest = *std::move(manifest);
      results.push_back(std::move(stored));
    }
  }
  return results;
}

void RedisRecords::Read(std::span<Reading> readings, const Patience& patience) {
  struct Chunk {
    Reading* reading;
    int64_t bytes;
  };
  std::vector<RedisCommand> commands;
  std::vector<Chunk> chunks;
  int64_t window = 0;
  const auto flush = [&] {
    auto replies = client_->Run(commands, patience.deadline());
    for (size_t i = 0; i < chunks.size(); ++i) {
      Reading& reading = *chunks[i].reading;
      if (!reading.status.ok()) continue;
      const absl::StatusOr<RedisReply>& reply = replies[i];
      if (!reply.ok()) {
        reading.status = reply.status();
      } else if (!reply->IsString()) {
        reading.status = absl::NotFoundError("Redis evicted a part of the record");
      } else if (static_cast<int64_t>(reply->text.size()) != chunks[i].bytes) {
        reading.status = absl::DataLossError("a part of the record in Redis has another size");
      } else {
        reading.status = patience.Check();
        if (reading.status.ok())
          reading.status = reading.add(std::as_bytes(std::span(reply->text)));
      }
    }
    commands.clear();
    chunks.clear();
    window = 0;
  };
  for (Reading& reading : readings) {
    for (int64_t i = 0; reading.status.ok() && i < reading.place.chunks(); ++i) {
      commands.push_back(
          RedisCommand::Of({"GET", keys_.Chunk(reading.name, reading.place.generation, i)}));
      chunks.push_back({&reading, reading.place.BytesOf(i)});
      window += reading.place.BytesOf(i);
      if (window >= kWindowBytes) flush();
      if (reading.status.ok()) reading.status = patience.Check();
    }
  }
  flush();
  for (const Reading& reading : readings) {
    if (reading.status.ok()) AddLengthen(reading.name, reading.place, {}, commands);
  }
  client_->Run(commands, patience.deadline());  // if it fails, it lives as long as it would have
}

absl::Status RedisRecords::Write(std::span<const Writing> writings, const Patience& patience) {
  thread_local absl::BitGen random;
  std::vector<Publication> publications;
  for (const Writing& writing : writings) {
    Publication publication{.writing = &writing, .place = {}, .manifest = ""};
    publication.place = {.generation = absl::Uniform<uint64_t>(random),
                         .chunk_bytes = options_.chunk_bytes,
                         .record_bytes = writing.record->bytes(),
                         .expires = writing.expires};
    if (publication.place.chunks() > kMaxRedisChunks) {
      return absl::ResourceExhaustedError(absl::StrCat("a record of ", writing.record->bytes(),
                                                       " bytes has more than ", kMaxRedisChunks,
                                                       " chunks; use larger ones"));
    }
    publication.manifest = EncodeRedisManifest({publication.place, writing.description});
    publications.push_back(std::move(publication));
  }
  if (absl::Status s = WriteChunks(publications, patience); !s.ok()) return s;

  std::vector<RedisCommand> commands;
  for (const Publication& publication : publications) {
    const RedisRecordName& name = publication.writing->name;
    for (int64_t i = 0; i < publication.place.chunks(); ++i) {
      commands.push_back(
          RedisCommand::Of({"PEXPIRE", keys_.Chunk(name, publication.place.generation, i),
                            ChunkTtl(publication.place)}));
    }
    commands.push_back(RedisCommand::Of(
        {"SET", keys_.Manifest(name), publication.manifest, "NX", "PX", Ttl(publication.place)}));
    if (options_.wait_replicas == 0) continue;
    RedisCommand wait;
    wait.words = {"WAIT", absl::StrCat(options_.wait_replicas),
                  Milliseconds(options_.wait_timeout)};
    wait.with_previous = true;
    commands.push_back(std::move(wait));
  }
  const auto replies = client_->Run(commands, patience.deadline());
  size_t at = 0;
  for (const Publication& publication : publications) {
    const RedisRecordName& name = publication.writing->name;
    bool whole = true;
    for (int64_t i = 0; i < publication.place.chunks(); ++i, ++at) {
      if (!replies[at].ok()) return replies[at].status();
      whole = whole && replies[at]->integer == 1;
    }
    const absl::StatusOr<RedisReply>& set = replies[at++];
    if (!set.ok()) return set.status();
    if (!whole) {
      // Redis evicts what it has just taken. The manifest must not stay.
      const absl::Status dropped = Drop(
          name, {publication.manifest, RedisManifest{publication.place, ""}}, patience.deadline());
      return dropped.ok() ? absl::ResourceExhaustedError(
                                "Redis evicts parts of a record before all of it is written")
                          : dropped;
    }
    if (set->type == RedisReply::Type::kNil) {
      if (absl::Status s = Settle(publication, patience.deadline()); !s.ok()) return s;
    }
    if (options_.wait_replicas == 0) continue;
    const absl::StatusOr<RedisReply>& wait = replies[at++];
    if (!wait.ok()) return wait.status();
    if (wait->integer < options_.wait_replicas) {
      return absl::UnavailableError(
          absl::StrCat("only ", wait->integer, " of ", options_.wait_replicas,
                       " Redis replicas acknowledged the record in time"));
    }
  }
  return absl::OkStatus();
}

absl::Status RedisRecords::WriteChunks(std::span<const Publication> publications,
                                       const Patience& patience) {
  std::vector<RedisCommand> commands;
  int64_t window = 0;
  const auto flush = [&] {
    const absl::Status status = RunAll(commands, patience.deadline());
    commands.clear();
    window = 0;
    return status;
  };
  for (const Publication& publication : publications) {
    int64_t i = 0;
    for (auto& pieces : publication.writing->record->Chunks(options_.chunk_bytes)) {
      RedisCommand command = RedisCommand::Of(
          {"PSETEX", keys_.Chunk(publication.writing->name, publication.place.generation, i),
           Milliseconds(kUnfinishedTtl)});
      command.value = std::move(pieces);
      commands.push_back(std::move(command));
      window += publication.place.BytesOf(i++);
      if (window < kWindowBytes) continue;
      if (absl::Status s = flush(); !s.ok()) return s;
      if (absl::Status s = patience.Check(); !s.ok()) return s;  // what is written expires
    }
  }
  return flush();
}

// Some manifest was there before this one: another writer's, or this one, if the command was
// repeated because its answer got lost.
absl::Status RedisRecords::Settle(const Publication& publication, absl::Time deadline) {
  const RedisRecordName& name = publication.writing->name;
  for (int attempt = 0; attempt < 2; ++attempt) {
    const auto there = std::move(ReadManifests(std::span(&name, 1), deadline).front());
    if (there.ok() && there->manifest.has_value()) {
      if (there->manifest->place.generation == publication.place.generation) {
        return absl::OkStatus();
      }
      std::vector<RedisCommand> unlinks;
      AddUnlinks(name, publication.place, unlinks);
      client_->Run(unlinks, deadline);  // else they expire
      return absl::OkStatus();
    }
    if (!there.ok() && !absl::IsNotFound(there.status())) return there.status();
    if (there.ok()) {
      if (absl::Status s = Drop(name, *there, deadline); !s.ok()) return s;
    }
    const auto set =
        client_->RunOne(RedisCommand::Of({"SET", keys_.Manifest(name), publication.manifest, "NX",
                                          "PX", Ttl(publication.place)}),
                        deadline);
    if (!set.ok()) return set.status();
    if (set->type == RedisReply::Type::kStatus) return absl::OkStatus();
  }
  return absl::UnavailableError("the record's manifest in Redis keeps changing");
}

absl::StatusOr<bool> RedisRecords::Refresh(const RedisRecordName& name,
                                           const RedisRecordPlace& place, absl::Time deadline,
                                           absl::Duration at_least) {
  std::vector<RedisCommand> commands;
  AddLengthen(name, place, at_least, commands);
  for (const auto& reply : client_->Run(commands, deadline)) {
    if (!reply.ok()) return reply.status();
    if (reply->integer != 1) return false;
  }
  return true;
}

absl::Status RedisRecords::Redescribe(const RedisRecordName& name, const Stored& stored,
                                      const std::string& description, absl::Time expires,
                                      absl::Time deadline) {
  RedisRecordPlace place = stored.manifest->place;
  place.expires = expires;
  const std::string manifest = EncodeRedisManifest({place, description});
  const auto replaced = client_->RunOne(
      Script(kReplaceIfSame, keys_.Manifest(name), {stored.raw, manifest}), deadline);
  if (!replaced.ok() || replaced->integer != 1) return replaced.status();
  return Refresh(name, place, deadline).status();
}

absl::Status RedisRecords::Drop(const RedisRecordName& name, const Stored& stored,
                                absl::Time deadline) {
  const auto dropped =
      client_->RunOne(Script(kDropIfSame, keys_.Manifest(name), {stored.raw}), deadline);
  if (!dropped.ok()) return dropped.status();
  if (dropped->integer == 1 && stored.manifest.has_value()) {
    std::vector<RedisCommand> unlinks;
    AddUnlinks(name, stored.manifest->place, unlinks);
    client_->Run(unlinks, deadline);  // else they expire
  }
  return absl::OkStatus();
}

absl::Status RedisRecords::Delete(std::span<const RedisRecordName> names,
                                  std::span<const absl::StatusOr<Stored>> stored,
                                  absl::Time deadline) {
  std::vector<RedisCommand> deletes;
  std::vector<RedisCommand> unlinks;
  for (size_t i = 0; i < names.size(); ++i) {
    deletes.push_back(RedisCommand::Of({"DEL", keys_.Manifest(names[i])}));
    if (stored[i].ok() && stored[i]->manifest.has_value()) {
      AddUnlinks(names[i], stored[i]->manifest->place, unlinks);
    }
  }
  if (absl::Status s = RunAll(deletes, deadline); !s.ok()) return s;
  client_->Run(unlinks, deadline);  // else they expire
  return absl::OkStatus();
}

void RedisRecords::AddLengthen(const RedisRecordName& name, const RedisRecordPlace& place,
                               absl::Duration at_least, std::vector<RedisCommand>& commands) const {
  for (int64_t i = 0; i < place.chunks(); ++i) {
    commands.push_back(
        Script(kLengthen, keys_.Chunk(name, place.generation, i), {ChunkTtl(place, at_least)}));
  }
  commands.push_back(Script(kLengthen, keys_.Manifest(name), {Ttl(place, at_least)}));
}

void RedisRecords::AddUnlinks(const RedisRecordName& name, const RedisRecordPlace& place,
                              std::vector<RedisCommand>& commands) const {
  for (int64_t i = 0; i < place.chunks(); ++i) {
    commands.push_back(RedisCommand::Of({"UNLINK", keys_.Chunk(name, place.generation, i)}));
  }
}

}  // namespace fourierkv
