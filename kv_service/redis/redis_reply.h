// One reply of a Redis server, as a value.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fourierkv {

struct RedisReply {
  enum class Type { kNil, kInteger, kString, kStatus, kError, kArray };

  Type type = Type::kNil;
  int64_t integer = 0;
  std::string text;  // of strings, statuses and errors
  std::vector<RedisReply> elements;

  bool IsString() const { return type == Type::kString; }
  bool IsInteger() const { return type == Type::kInteger; }
  bool IsError() const { return type == Type::kError; }
  bool IsArray() const { return type == Type::kArray; }
};

}  // namespace fourierkv
