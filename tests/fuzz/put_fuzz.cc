// Streams of PutSegments, as hostile clients may send them: each ends with a status that says what
// is wrong, or with a commit, and leaves nothing behind that was not committed.

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "compute/base/content_hash.h"
#include "fuzz_service.h"
#include "proto/support/grpc_status.h"

namespace {

using namespace fourierkv;

// What takes a fuzzer too long to find: whole parts, of few bytes again and again; their checksums.
void Mend(const FuzzService& fuzz, v1::PutSegmentsRequest& message) {
  if (message.has_header()) {
    v1::PutHeader& header = *message.mutable_header();
    fuzz.MendKey(header.mutable_parent_key());
    if (header.has_namespace_()) fuzz.MendNamespace(header.mutable_namespace_());
  }
  if (message.has_chunk()) {
    v1::PutChunk& chunk = *message.mutable_chunk();
    if (chunk.data().size() == 8) {
      const std::string once = chunk.data();
      for (int i = 1; i < kSmall.PartBytes(kS) / 8; ++i) chunk.mutable_data()->append(once);
    }
    if (chunk.checksum() == 0) {
      chunk.set_checksum(Checksum(std::as_bytes(std::span(chunk.data()))));
    }
  }
}

}  // namespace

// Messages, each behind its length in two bytes, little-endian.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzService& fuzz = FuzzService::Get();
  std::vector<v1::PutSegmentsRequest> messages;
  while (size >= 2 && messages.size() < 64) {
    const size_t length = data[0] + 256 * size_t{data[1]};
    data += 2;
    size -= 2;
    v1::PutSegmentsRequest message;
    if (length > size || !message.ParseFromArray(data, static_cast<int>(length))) break;
    data += length;
    size -= length;
    Mend(fuzz, message);
    messages.push_back(std::move(message));
  }
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(Soon()));
  auto stream = fuzz.raw().PutSegments(&context);
  for (const v1::PutSegmentsRequest& message : messages) {
    if (!stream->Write(message)) break;
  }
  stream->WritesDone();
  bool committed = false;
  v1::PutSegmentsResponse response;
  while (stream->Read(&response)) committed = committed || response.has_committed();
  const absl::Status status = FromGrpc(stream->Finish());
  FuzzService::ExpectCanonical(status);
  if (status.ok() != committed) std::abort();
  fuzz.ExpectNothingLeft();
  return 0;
}
