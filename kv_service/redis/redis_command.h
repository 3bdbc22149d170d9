// One command to a Redis server.

#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace fourierkv {

// May be executed more than once, because a connection can break after the server has executed it:
// use commands that may be repeated (SET, GET, DEL, EXISTS, PEXPIRE, ...).
struct RedisCommand {
  std::vector<std::string> words;
  // One more argument behind the words if it is not empty: the pieces in a row, borrowed until the
  // command's result is there.
  std::vector<std::span<const std::byte>> value;
  // Decides the node, and is not sent.
  std::string key;
  // Sent behind the command before it on the same connection, wherever that goes: for WAIT. The
  // first command cannot.
  bool with_previous = false;

  // A command whose second word is its key.
  static RedisCommand Of(std::vector<std::string> words) {
    RedisCommand command;
    command.key = words.size() > 1 ? words[1] : "";
    command.words = std::move(words);
    return command;
  }
};

}  // namespace fourierkv
