// Which of a Redis Cluster's slots a key belongs to.

#pragma once

#include "absl/strings/string_view.h"

namespace fourierkv {

inline constexpr int kHashSlots = 16384;

// CRC16 (XMODEM) of the key modulo kHashSlots; of the part between the first '{' and the next '}'
// if that is not empty, so that keys with the same such part share a slot (the Redis Cluster
// specification, "Key distribution model").
int HashSlot(absl::string_view key);

}  // namespace fourierkv
