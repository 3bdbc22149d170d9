#include "kv_service/redis/reply_parser.h"

#include <hiredis/read.h>

#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

// Where the object that `task` describes belongs: a new root, or the next element of the array that
// is being read. Null, which hiredis reports as an error, if the reply has too many objects.
RedisReply* Place(const redisReadTask* task, RedisReply::Type type) {
  auto& remaining = *static_cast<int64_t*>(task->privdata);
  if (--remaining < 0) return nullptr;
  RedisReply* reply = task->parent == nullptr
                          ? new RedisReply
                          : &static_cast<RedisReply*>(task->parent->obj)->elements.emplace_back();
  reply->type = type;
  return reply;
}

void* CreateString(const redisReadTask* task, char* text, size_t size) {
  RedisReply::Type type;
  switch (task->type) {
    case REDIS_REPLY_STRING:
      type = RedisReply::Type::kString;
      break;
    case REDIS_REPLY_STATUS:
      type = RedisReply::Type::kStatus;
      break;
    case REDIS_REPLY_ERROR:
      type = RedisReply::Type::kError;
      break;
    default:
      return nullptr;  // of RESP3, which was not asked for
  }
  RedisReply* reply = Place(task, type);
  if (reply != nullptr) reply->text.assign(text, size);
  return reply;
}

// The count is an int in hiredis 0.14 and a size_t in 1.x. Nothing is allocated by it: elements
// cost memory only as they arrive.
template <typename Count>
void* CreateArray(const redisReadTask* task, Count) {
  if (task->type != REDIS_REPLY_ARRAY) return nullptr;
  return Place(task, RedisReply::Type::kArray);
}

void* CreateInteger(const redisReadTask* task, long long value) {
  RedisReply* reply = Place(task, RedisReply::Type::kInteger);
  if (reply != nullptr) reply->integer = value;
  return reply;
}

void* CreateNil(const redisReadTask* task) { return Place(task, RedisReply::Type::kNil); }

void FreeRoot(void* reply) { delete static_cast<RedisReply*>(reply); }

[[maybe_unused]] void* RefuseDouble(const redisReadTask*, double, char*, size_t) { return nullptr; }
[[maybe_unused]] void* RefuseBool(const redisReadTask*, int) { return nullptr; }

template <typename Functions>
Functions MakeFunctions() {
  Functions functions{};
  functions.createString = CreateString;
  functions.createArray = CreateArray;
  functions.createInteger = CreateInteger;
  functions.createNil = CreateNil;
  functions.freeObject = FreeRoot;
  if constexpr (requires { functions.createDouble; }) functions.createDouble = RefuseDouble;
  if constexpr (requires { functions.createBool; }) functions.createBool = RefuseBool;
  return functions;
}

redisReplyObjectFunctions* Functions() {
  static redisReplyObjectFunctions functions = MakeFunctions<redisReplyObjectFunctions>();
  return &functions;
}

}  // namespace

void ReplyParser::Free::operator()(redisReader* reader) const { redisReaderFree(reader); }

ReplyParser::ReplyParser(int64_t max_reply_bytes)
    : max_reply_bytes_(max_reply_bytes),
      pending_objects_(kMaxReplyObjects),
      reader_(redisReaderCreateWithFunctions(Functions())) {
  if (reader_ == nullptr) return;
  reader_->privdata = &pending_objects_;
  reader_->maxbuf = 0;  // keep the buffer: the next reply is likely to be as large
}

ReplyParser::~ReplyParser() = default;

absl::Status ReplyParser::Feed(absl::string_view bytes) {
  if (reader_ == nullptr ||
      redisReaderFeed(reader_.get(), bytes.data(), bytes.size()) != REDIS_OK) {
    return absl::ResourceExhaustedError("no memory for a Redis reply");
  }
  pending_bytes_ += static_cast<int64_t>(bytes.size());
  return absl::OkStatus();
}

absl::StatusOr<std::optional<RedisReply>> ReplyParser::Next() {
  if (reader_ == nullptr) return absl::ResourceExhaustedError("no memory for a Redis reply");
  void* root = nullptr;
  if (redisReaderGetReply(reader_.get(), &root) != REDIS_OK) {
    if (pending_objects_ < 0) {
      return absl::InternalError(
          absl::StrCat("a Redis reply has more than ", kMaxReplyObjects, " elements"));
    }
    return absl::InternalError(
        absl::StrCat("bytes that are no Redis (RESP2) reply: ", reader_->errstr));
  }
  if (root == nullptr) {
    if (pending_bytes_ > max_reply_bytes_) {
      return absl::InternalError(
          absl::StrCat("a Redis reply is larger than ", max_reply_bytes_, " bytes"));
    }
    return std::nullopt;
  }
  const std::unique_ptr<RedisReply> reply(static_cast<RedisReply*>(root));
  pending_bytes_ = static_cast<int64_t>(reader_->len - reader_->pos);
  pending_objects_ = kMaxReplyObjects;
  return std::optional<RedisReply>(std::move(*reply));
}

bool ReplyParser::HasLeftovers() const { return pending_bytes_ != 0; }

}  // namespace fourierkv
