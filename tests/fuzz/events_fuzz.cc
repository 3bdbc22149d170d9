// Messages of an event stream, as a hostile server may send them: each is applied or refused, and a
// mirror that refused one is never called exact before a whole snapshot.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "clients/cpp/event_mirror.h"

// Messages, each behind its length in two bytes, little-endian.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fourierkv::EventMirror mirror;
  fourierkv::v1::SubscribeResponse message;
  while (size >= 2) {
    const size_t length = data[0] + 256 * size_t{data[1]};
    data += 2;
    size -= 2;
    if (length > size) break;
    if (!message.ParseFromArray(data, static_cast<int>(length))) break;
    data += length;
    size -= length;
    const bool applied = mirror.Apply(message).ok();
    if (!applied && mirror.exact()) std::abort();
    if (applied && mirror.exact() && mirror.sequence() != message.through_sequence()) std::abort();
    const auto resume = mirror.Resume();
    if ((resume.epoch() != 0) != mirror.exact()) std::abort();
  }
  return 0;
}
