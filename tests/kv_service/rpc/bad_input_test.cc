// What the service does with input that is wrong: a canonical status that names the field or the
// fix, and nothing left behind.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using Messages = std::vector<v1::PutSegmentsRequest>;

v1::PutSegmentsRequest HeaderMessage(const v1::PutHeader& header) {
  v1::PutSegmentsRequest message;
  *message.mutable_header() = header;
  return message;
}

v1::PutSegmentsRequest ChunkMessage(int64_t segment, int layer, Part part,
                                    std::span<const std::byte> data) {
  v1::PutSegmentsRequest message;
  v1::PutChunk* chunk = message.mutable_chunk();
  chunk->set_segment_index(segment);
  chunk->set_layer(layer);
  chunk->set_part(ToProto(part));
  chunk->set_data(data.data(), data.size());
  chunk->set_checksum(Checksum(data));
  return message;
}

void SetData(v1::PutChunk* chunk, std::string data) {
  chunk->set_data(std::move(data));
  chunk->set_checksum(Checksum(std::as_bytes(std::span(chunk->data()))));
}

class BadInputTest : public testing::Test {
 protected:
  BadInputTest() {
    EXPECT_TRUE(service_.client().PutProfile(SmallProfile(), Soon()).ok());
    used_ = service_.UsedBytes();
  }

  // A right put of `sequence_`: header, one chunk a part, commit.
  Messages RightPut() const {
    Messages messages = {HeaderMessage(MakePutHeader(ns_, sequence_, 2))};
    for (int64_t segment = 0; segment < sequence_.segments(); ++segment) {
      for (int layer = 0; layer < kSmall.layers; ++layer) {
        for (const Part part : kParts) {
          messages.push_back(
              ChunkMessage(segment, layer, part, AsBytes(sequence_.PartOf(segment, layer, part))));
        }
      }
    }
    messages.emplace_back().mutable_commit();
    return messages;
  }
  static size_t ChunkAt(int segment, int layer, Part part) {
    return 1 + (segment * kSmall.layers + layer) * 2 + static_cast<int>(part);
  }

  // Sends the messages and closes; what the put ended with.
  absl::Status Outcome(const Messages& messages) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    auto stream = service_.raw().PutSegments(&context);
    for (const auto& message : messages) {
      if (!stream->Write(message)) break;
    }
    stream->WritesDone();
    v1::PutSegmentsResponse response;
    while (stream->Read(&response)) {
    }
    return FromGrpc(stream->Finish());
  }

  void ExpectRefused(const Messages& messages, StatusCode code, const std::string& words) {
    const absl::Status status = Outcome(messages);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    ExpectNothingLeft();
  }

  void ExpectNothingLeft() {
    EXPECT_EQ(service_.UsedBytes(), used_);
    EXPECT_EQ(service_.Stats().segments(), segments_);
  }

  TestService service_;
  const v1::CacheNamespace ns_ = SmallWireNamespace();
  const Sequence sequence_ = Sequence(1, 2 * kS + 10);
  uint64_t used_ = 0;
  uint64_t segments_ = 0;
};

TEST_F(BadInputTest, TheRightPutIsRight) {
  const absl::Status status = Outcome(RightPut());
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(service_.Stats().segments(), 3);
}

TEST_F(BadInputTest, PutsOfAnotherShape) {
  struct Case {
    const char* name;
    std::function<void(Messages&)> edit;
    StatusCode code;
    const char* words;
  };
  const auto chunk = [](Messages& m, int segment, int layer, Part part) {
    return m[ChunkAt(segment, layer, part)].mutable_chunk();
  };
  const Case cases[] = {
      {"nothing", [](Messages& m) { m.clear(); }, StatusCode::kCancelled, "before its header"},
      {"no header", [](Messages& m) { m.erase(m.begin()); }, StatusCode::kInvalidArgument,
       "must be its header"},
      {"empty first message", [](Messages& m) { m[0].Clear(); }, StatusCode::kInvalidArgument,
       "must be its header"},
      {"two headers", [](Messages& m) { m.insert(m.begin() + 2, m[0]); },
       StatusCode::kInvalidArgument, "one header"},
      {"empty message", [](Messages& m) { m[3].Clear(); }, StatusCode::kInvalidArgument,
       "header, chunk or commit"},
      {"no commit", [](Messages& m) { m.pop_back(); }, StatusCode::kCancelled, "without a commit"},
      {"commit too early", [](Messages& m) { m.erase(m.begin() + ChunkAt(1, 1, Part::kV)); },
       StatusCode::kFailedPrecondition, "segment 1 layer 1 V: incomplete: 0 of 4096"},
      {"half a part",
       [&](Messages& m) { SetData(chunk(m, 2, 0, Part::kK), std::string(100, '\0')); },
       StatusCode::kFailedPrecondition, "segment 2 layer 0 K: incomplete: 100 of 320"},
      {"unknown segment", [&](Messages& m) { chunk(m, 0, 0, Part::kK)->set_segment_index(3); },
       StatusCode::kInvalidArgument, "segment_index is 3; this put has 0 to 2"},
      {"huge segment",
       [&](Messages& m) { chunk(m, 0, 0, Part::kK)->set_segment_index(~uint64_t{0}); },
       StatusCode::kInvalidArgument, "segment_index is"},
      {"unknown layer", [&](Messages& m) { chunk(m, 0, 0, Part::kK)->set_layer(2); },
       StatusCode::kInvalidArgument, "layer is 2; it must be from 0 to 1"},
      {"huge layer", [&](Messages& m) { chunk(m, 0, 0, Part::kK)->set_layer(~0u); },
       StatusCode::kInvalidArgument, "layer is"},
      {"no part", [&](Messages& m) { chunk(m, 0, 0, Part::kK)->clear_part(); },
       StatusCode::kInvalidArgument, "chunk.part is 0; it must be K or V"},
      {"unknown part",
       [&](Messages& m) { chunk(m, 0, 0, Part::kK)->set_part(static_cast<v1::KvPart>(9)); },
       StatusCode::kInvalidArgument, "chunk.part is 9"},
      {"beyond the part", [&](Messages& m) { chunk(m, 0, 0, Part::kK)->set_offset(1); },
       StatusCode::kOutOfRange, "segment 0 layer 0 K: 4096 bytes from offset 1"},
      {"far beyond", [&](Messages& m) { chunk(m, 0, 0, Part::kK)->set_offset(~uint64_t{0}); },
       StatusCode::kOutOfRange, "segment 0 layer 0 K"},
      {"no data", [&](Messages& m) { SetData(chunk(m, 0, 0, Part::kK), ""); },
       StatusCode::kInvalidArgument, "no data"},
      {"too much data",
       [&](Messages& m) { SetData(chunk(m, 0, 0, Part::kK), std::string((1 << 20) + 1, 'x')); },
       StatusCode::kInvalidArgument, "chunk.data has 1048577 bytes; send at most 1048576"},
      {"sent twice", [](Messages& m) { m.insert(m.begin() + 2, m[1]); }, StatusCode::kAlreadyExists,
       "segment 0 layer 0 K"},
      {"checksum of something else",
       [&](Messages& m) { chunk(m, 1, 0, Part::kV)->mutable_data()->at(77) ^= 4; },
       StatusCode::kDataLoss, "segment 1 layer 0 V offset 0: checksum"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Messages messages = RightPut();
    c.edit(messages);
    ExpectRefused(messages, c.code, c.words);
  }
  EXPECT_TRUE(Outcome(RightPut()).ok()) << "none of these stands in the way of the right one";
}

TEST_F(BadInputTest, ValuesThatAreNotNumbers) {
  for (const int segment : {0, 1, 2}) {  // exact, encoded, tail
    for (const float bad : {NAN, INFINITY, -INFINITY, 1e31f}) {
      SCOPED_TRACE(absl::StrCat("segment ", segment, " value ", bad));
      auto values = sequence_.PartOf(segment, 1, Part::kV);
      values[37] = FloatToBf16(bad);
      Messages messages = RightPut();
      messages[ChunkAt(segment, 1, Part::kV)] = ChunkMessage(segment, 1, Part::kV, AsBytes(values));
      ExpectRefused(messages, StatusCode::kInvalidArgument,
                    absl::StrCat("segment ", segment, " layer 1 V: "));
    }
  }
}

TEST_F(BadInputTest, HeadersThatMakeNoSense) {
  struct Case {
    const char* name;
    std::function<void(v1::PutHeader&)> edit;
    StatusCode code;
    const char* words;
  };
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  const std::string long_text(257, 'x');
  const auto ns = [](v1::PutHeader& h) { return h.mutable_namespace_(); };
  const Case cases[] = {
      {"no namespace", [](auto& h) { h.clear_namespace_(); }, kInvalid, "kv_dtype"},
      {"model_id", [&](auto& h) { ns(h)->clear_model_id(); }, kInvalid, "model_id"},
      {"long model_id", [&](auto& h) { ns(h)->set_model_id(long_text); }, kInvalid, "model_id"},
      {"control characters", [&](auto& h) { ns(h)->set_model_id("a\nb"); }, kInvalid, "model_id"},
      {"revision", [&](auto& h) { ns(h)->clear_model_revision(); }, kInvalid, "model_revision"},
      {"weight_dtype", [&](auto& h) { ns(h)->clear_weight_dtype(); }, kInvalid, "weight_dtype"},
      {"salt", [&](auto& h) { ns(h)->set_tenant_salt(long_text); }, kInvalid, "tenant_salt"},
      {"kv_dtype", [&](auto& h) { ns(h)->set_kv_dtype("int8"); }, kInvalid,
       "namespace.kv_dtype is 'int8'; it must be bf16 or fp16"},
      {"no layers", [&](auto& h) { ns(h)->set_layers(0); }, kInvalid, "layers"},
      {"many layers", [&](auto& h) { ns(h)->set_layers(~0u); }, kInvalid, "layers"},
      {"no heads", [&](auto& h) { ns(h)->set_kv_heads(0); }, kInvalid, "kv_heads"},
      {"head_dim", [&](auto& h) { ns(h)->set_head_dim(12); }, kInvalid, "head_dim"},
      {"rope", [&](auto& h) { ns(h)->set_rope(long_text); }, kInvalid, "rope"},
      {"tp_size", [&](auto& h) { ns(h)->set_tp_size(0); }, kInvalid, "tp_size"},
      {"tp_rank", [&](auto& h) { ns(h)->set_tp_rank(1); }, kInvalid, "tp_rank"},
      {"lora_id", [&](auto& h) { ns(h)->set_lora_id(long_text); }, kInvalid, "lora_id"},
      {"segment_tokens", [&](auto& h) { ns(h)->set_segment_tokens(100); }, kInvalid,
       "segment_tokens"},
      {"short profile_id", [&](auto& h) { ns(h)->set_profile_id(std::string(31, 'x')); }, kInvalid,
       "namespace.profile_id"},
      {"zero profile_id", [&](auto& h) { ns(h)->set_profile_id(std::string(32, '\0')); }, kInvalid,
       "profile_id"},
      {"unknown profile", [&](auto& h) { ns(h)->set_profile_id(std::string(32, 'x')); },
       StatusCode::kFailedPrecondition, "ProfileService.PutProfile"},
      {"profile of another geometry", [&](auto& h) { ns(h)->set_layers(3); }, kInvalid, "profile"},
      {"profile of other segments", [&](auto& h) { ns(h)->set_segment_tokens(256); }, kInvalid,
       "segment_tokens"},
      {"no tokens", [](auto& h) { h.clear_token_ids(); }, kInvalid, "token_ids has 0"},
      {"too many tokens", [](auto& h) { h.mutable_token_ids()->Resize(4096 * kS + 1, 7); },
       kInvalid, "token_ids has 524289 ids"},
      {"parent of nothing", [](auto& h) { h.set_parent_key(std::string(32, 'x')); }, kInvalid,
       "parent_key"},
      {"no parent", [](auto& h) { h.set_first_segment_index(1); }, kInvalid,
       "parent_key is missing"},
      {"short parent", [](auto& h) { h.set_parent_key(std::string(31, 'x')); }, kInvalid,
       "header.parent_key"},
      {"unknown parent",
       [](auto& h) {
         h.set_first_segment_index(1);
         h.set_parent_key(std::string(32, 'x'));
       },
       StatusCode::kFailedPrecondition, "is not stored in this namespace"},
      {"huge index",
       [](auto& h) {
         h.set_first_segment_index(~uint64_t{0});
         h.set_parent_key(std::string(32, 'x'));
       },
       kInvalid, "header.first_segment_index"},
      {"no form", [](auto& h) { h.clear_payload_form(); }, kInvalid, "header.payload_form is 0"},
      {"dense form", [](auto& h) { h.set_payload_form(v1::SEGMENT_FORM_DENSE); }, kInvalid,
       "header.payload_form is 3; it must be EXACT"},
      {"unknown form", [](auto& h) { h.set_payload_form(static_cast<v1::SegmentForm>(99)); },
       kInvalid, "header.payload_form is 99"},
      {"compact sink",
       [](auto& h) {
         h.set_payload_form(v1::SEGMENT_FORM_COMPACT);
         h.mutable_token_ids()->Truncate(kS);
       },
       kInvalid, "segment 0 is kept exact"},
      {"compact tail", [](auto& h) { h.set_payload_form(v1::SEGMENT_FORM_COMPACT); }, kInvalid,
       "tails are exact"},
      {"compact without a profile",
       [&](auto& h) {
         ns(h)->clear_profile_id();
         h.set_payload_form(v1::SEGMENT_FORM_COMPACT);
       },
       kInvalid, "no profile_id"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    v1::PutHeader header = MakePutHeader(ns_, sequence_);
    c.edit(header);
    ExpectRefused({HeaderMessage(header)}, c.code, c.words);
  }
}

TEST_F(BadInputTest, ParentsThatDoNotFit) {
  ASSERT_TRUE(Outcome(RightPut()).ok());
  used_ = service_.UsedBytes();
  segments_ = 3;
  const auto keys = KeysOf(ns_, sequence_);
  const Sequence next(2, 4 * kS);
  ExpectRefused({HeaderMessage(MakePutHeader(ns_, next, 0, 2, keys[0]))},
                StatusCode::kFailedPrecondition, "first_segment_index must be 1, not 2");
  ExpectRefused({HeaderMessage(MakePutHeader(ns_, next, 0, 3, keys[2]))},
                StatusCode::kFailedPrecondition, "is a tail, which nothing can follow");
  // What is stored is not needed, so it is not taken either.
  Messages again = {HeaderMessage(MakePutHeader(ns_, sequence_, 2)),
                    ChunkMessage(0, 0, Part::kK, AsBytes(sequence_.PartOf(0, 0, Part::kK)))};
  ExpectRefused(again, StatusCode::kInvalidArgument, "segment 0 is stored already");
}

TEST_F(BadInputTest, ClientsThatDisappear) {
  for (const size_t sent : {size_t{1}, size_t{4}, RightPut().size() - 1}) {
    SCOPED_TRACE(sent);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    auto stream = service_.raw().PutSegments(&context);
    const Messages messages = RightPut();
    for (size_t i = 0; i < sent; ++i) ASSERT_TRUE(stream->Write(messages[i]));
    v1::PutSegmentsResponse accepted;
    ASSERT_TRUE(stream->Read(&accepted));
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    ExpectNothingLeft();
  }
  // The same when the deadline passes.
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(50)));
  auto stream = service_.raw().PutSegments(&context);
  stream->Write(RightPut()[0]);
  v1::PutSegmentsResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingLeft();
}

TEST_F(BadInputTest, ClientsThatFallSilent) {
  ServiceLimits limits;
  limits.stall = absl::Milliseconds(400);
  TestService strict(limits);
  ASSERT_TRUE(strict.client().PutProfile(SmallProfile(), Soon()).ok());
  {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    auto stream = strict.raw().PutSegments(&context);
    const Messages messages = RightPut();
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(stream->Write(messages[i]));
    v1::PutSegmentsResponse response;
    while (stream->Read(&response)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_EQ(strict.UsedBytes(), 0);
  }
  // A fetch that nobody reads (more than fits between the two ends) keeps what it would send only
  // for a while, too.
  const Sequence large(1, 64 * kS);
  ASSERT_TRUE(PutSequence(strict.client(), MakePutHeader(ns_, large), large).ok());
  grpc::ClientContext context;
  auto reader =
      strict.raw().GetSegments(&context, MakeGet(KeysOf(ns_, large), {v1::SEGMENT_FORM_EXACT}));
  v1::GetSegmentsResponse plan;
  ASSERT_TRUE(reader->Read(&plan));
  const Digest first = *Digest::FromRaw(KeysOf(ns_, large)[0], "key");
  ASSERT_TRUE(strict.client().Delete({first}, Soon()).ok());
  const absl::Time deadline = Soon();
  while (strict.Stats().used_bytes() > 0 && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(2));
  }
  EXPECT_EQ(strict.Stats().used_bytes(), 0);
  context.TryCancel();
  reader->Finish();
}

TEST_F(BadInputTest, CompactBlobsThatLie) {
  // Real blobs of segment 1, made by the service from another put of the same tokens.
  TestService maker;
  ASSERT_TRUE(maker.client().PutProfile(SmallProfile(), Soon()).ok());
  ASSERT_TRUE(PutSequence(maker.client(), MakePutHeader(ns_, sequence_, 2), sequence_).ok());
  const auto keys = KeysOf(ns_, sequence_);
  const auto made = Fetch(maker.client(), MakeGet({keys[1]}, {v1::SEGMENT_FORM_COMPACT}));
  ASSERT_TRUE(made.ok()) << made.status();

  // The sink is there already.
  Messages sink = {HeaderMessage(MakePutHeader(ns_, sequence_, 0, 0, "", 1))};
  for (int i = 0; i < 4; ++i) sink.push_back(RightPut()[1 + i]);
  sink.emplace_back().mutable_commit();
  ASSERT_TRUE(Outcome(sink).ok());
  used_ = service_.UsedBytes();
  segments_ = 1;

  v1::PutHeader header = MakePutHeader(ns_, sequence_, 0, 1, keys[0], /*end=*/2);
  header.set_payload_form(v1::SEGMENT_FORM_COMPACT);
  using Blob = std::vector<std::byte>;
  const auto put = [&](const std::function<void(int layer, Part part, Blob& blob)>& edit) {
    Messages messages = {HeaderMessage(header)};
    for (const auto& [where, fetched] : made->blobs) {
      const auto [request, layer, part] = where;
      Blob blob(fetched.bytes.span().begin(), fetched.bytes.span().end());
      edit(layer, part, blob);
      messages.push_back(ChunkMessage(1, layer, part, blob));
    }
    messages.emplace_back().mutable_commit();
    return messages;
  };
  const auto blob_of = [&](int layer, Part part) {
    const auto bytes = made->blobs.at({0, layer, part}).bytes.span();
    return Blob(bytes.begin(), bytes.end());
  };
  // Only the blob of layer 1 V lies, with a checksum that fits.
  const auto resealed = [&](const std::function<void(BlobHeader&, Blob&)>& edit) {
    return put([&](int layer, Part part, Blob& blob) {
      if (layer != 1 || part != Part::kV) return;
      BlobHeader h = *OpenBlob(blob);
      edit(h, blob);
      SealBlob(h, blob);
    });
  };
  const std::string where = "segment 1 layer 1 V: ";
  constexpr auto kInvalid = StatusCode::kInvalidArgument;

  ExpectRefused(put([&](int layer, Part part, Blob& blob) {
                  if (layer == 1 && part == Part::kV) blob = blob_of(0, Part::kV);
                }),
                kInvalid, where + "blob header: layer is 0; it must be 1");
  ExpectRefused(put([&](int layer, Part part, Blob& blob) {
                  if (layer == 1 && part == Part::kV) blob = blob_of(1, Part::kK);
                }),
                kInvalid, where + "blob header: part is K; it must be V");
  ExpectRefused(put([&](int layer, Part part, Blob& blob) {
                  if (layer == 1 && part == Part::kV) blob[300] ^= std::byte{1};
                }),
                StatusCode::kDataLoss, where);
  ExpectRefused(put([&](int layer, Part part, Blob& blob) {
                  if (layer == 1 && part == Part::kV) blob.assign(blob.size(), std::byte{0});
                }),
                StatusCode::kDataLoss, where);
  ExpectRefused(put([&](int layer, Part part, Blob& blob) {
                  if (layer == 1 && part == Part::kV) blob.pop_back();
                }),
                StatusCode::kFailedPrecondition, where + "incomplete");
  ExpectRefused(put([&](int layer, Part part, Blob& blob) {
                  if (layer == 1 && part == Part::kV) blob.push_back(std::byte{0});
                }),
                StatusCode::kOutOfRange, where);
  ExpectRefused(resealed([&](BlobHeader& h, Blob&) { h.block_key.bytes[0] ^= 1; }), kInvalid,
                where + "blob header: block_key");
  ExpectRefused(resealed([&](BlobHeader& h, Blob&) { h.profile_prefix[3] ^= 1; }), kInvalid,
                where + "blob header: profile_prefix");
  ExpectRefused(resealed([&](BlobHeader& h, Blob&) { h.dtype = KvDtype::kFp16; }), kInvalid,
                where + "blob header: dtype");
  ExpectRefused(resealed([&](BlobHeader& h, Blob&) { h.first_token = 0; }), kInvalid,
                where + "blob header: first_token");
  ExpectRefused(resealed([&](BlobHeader& h, Blob&) { h.tokens = 256; }), kInvalid,
                where + "blob header: tokens");
  ExpectRefused(resealed([&](BlobHeader& h, Blob&) { h.relative_error = -1; }),
                StatusCode::kDataLoss, where);
  ExpectRefused(resealed([&](BlobHeader&, Blob& blob) {
                  blob[kBlobHeaderBytes] = std::byte{0xc0};  // the first scale: NaN
                  blob[kBlobHeaderBytes + 1] = std::byte{0x7f};
                }),
                kInvalid, where);

  EXPECT_TRUE(Outcome(put([](int, Part, Blob&) {})).ok());
  const auto stored = Fetch(service_.client(), MakeGet({keys[1]}, {v1::SEGMENT_FORM_COMPACT}));
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->blobs.size(), 4);
}

TEST_F(BadInputTest, MatchesThatMakeNoSense) {
  struct Case {
    const char* name;
    std::function<void(v1::MatchPrefixRequest&)> edit;
    const char* words;
  };
  const Case cases[] = {
      {"nothing", [](auto& r) { r.clear_token_ids(); }, "either token_ids"},
      {"both", [](auto& r) { r.add_block_keys(std::string(32, 'x')); }, "either token_ids"},
      {"no namespace", [](auto& r) { r.clear_namespace_(); }, "kv_dtype"},
      {"bad namespace", [](auto& r) { r.mutable_namespace_()->set_tp_size(0); }, "tp_size"},
      {"short key",
       [](auto& r) {
         r.clear_token_ids();
         r.add_block_keys(std::string(32, 'x'));
         r.add_block_keys(std::string(33, 'x'));
       },
       "block_keys[1]"},
      {"many keys",
       [](auto& r) {
         r.clear_token_ids();
         for (int i = 0; i < 65537; ++i) r.add_block_keys(std::string(32, 'x'));
       },
       "block_keys has 65537 keys; at most 65536"},
      {"many tokens", [](auto& r) { r.mutable_token_ids()->Resize((1 << 22) + 1, 7); },
       "token_ids has 4194305"},
      {"negative lease", [](auto& r) { r.mutable_lease_ttl()->set_seconds(-1); }, "lease_ttl"},
      {"negative nanos", [](auto& r) { r.mutable_lease_ttl()->set_nanos(-1); }, "lease_ttl"},
      {"long lease", [](auto& r) { r.mutable_lease_ttl()->set_seconds(601); },
       "lease_ttl is 10m1s; it must be from 0 to 10m"},
      {"endless lease",
       [](auto& r) { r.mutable_lease_ttl()->set_seconds(std::numeric_limits<int64_t>::max()); },
       "lease_ttl"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = ns_;
    request.add_token_ids(1);
    c.edit(request);
    const auto match = service_.client().MatchPrefix(request, Soon());
    EXPECT_EQ(match.status().code(), StatusCode::kInvalidArgument) << match.status();
    EXPECT_THAT(std::string(match.status().message()), HasSubstr(c.words));
  }
  EXPECT_EQ(service_.Stats().leases(), 0);
}

TEST_F(BadInputTest, GetsThatMakeNoSense) {
  const std::string key(32, 'x');
  constexpr auto kExact = v1::SEGMENT_FORM_EXACT;
  const auto expect = [&](const v1::GetSegmentsRequest& request, const char* words) {
    const auto fetched = Fetch(service_.client(), request);
    EXPECT_EQ(fetched.status().code(), StatusCode::kInvalidArgument) << fetched.status();
    EXPECT_THAT(std::string(fetched.status().message()), HasSubstr(words));
  };
  expect(MakeGet({}, {}), "segments is empty");
  expect(MakeGet({key, "short"}, {kExact}), "segments[1].block_key");
  expect(MakeGet({key}, {}), "accepted_forms is empty");
  expect(MakeGet({key}, {static_cast<v1::SegmentForm>(9)}), "segments[0].accepted_forms is 9");
  expect(MakeGet({key}, {v1::SEGMENT_FORM_UNSPECIFIED}), "segments[0].accepted_forms is 0");
  expect(MakeGet({key}, {kExact, kExact, kExact, kExact}), "segments[0].accepted_forms");
  expect(MakeGet(std::vector<std::string>(16385, key), {kExact}), "segments has 16385 entries");
  v1::GetSegmentsRequest foreign = MakeGet({key}, {kExact});
  foreign.mutable_namespace_()->set_kv_dtype("int8");
  expect(foreign, "namespace.kv_dtype");
}

TEST_F(BadInputTest, KeysThatMakeNoSense) {
  grpc::ClientContext contexts[4];
  v1::ExistsRequest exists;
  v1::ExistsResponse stored;
  exists.add_block_keys(std::string(32, 'x'));
  exists.add_block_keys("");
  absl::Status status = FromGrpc(service_.raw().Exists(&contexts[0], exists, &stored));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("block_keys[1]"));
  v1::DeleteRequest remove;
  v1::DeleteResponse removed;
  remove.add_block_keys(std::string(31, 'x'));
  status = FromGrpc(service_.raw().Delete(&contexts[1], remove, &removed));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("block_keys[0]"));
  for (int i = 0; i < 65537; ++i) {
    exists.add_block_keys(std::string(32, 'x'));
    remove.add_block_keys(std::string(32, 'x'));
  }
  status = FromGrpc(service_.raw().Exists(&contexts[2], exists, &stored));
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 65536"));
  status = FromGrpc(service_.raw().Delete(&contexts[3], remove, &removed));
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 65536"));
}

TEST_F(BadInputTest, AFullBudgetRefusesWhatIsNewAndKeepsWhatIsLeased) {
  ServiceLimits limits;
  limits.memory_bytes = 200 << 10;
  TestService small(limits);
  ASSERT_TRUE(small.client().PutProfile(SmallProfile(), Soon()).ok());
  const Sequence leased(3, 8 * kS);
  ASSERT_TRUE(PutSequence(small.client(), MakePutHeader(ns_, leased), leased).ok());
  v1::MatchPrefixRequest match;
  *match.mutable_namespace_() = ns_;
  match.mutable_token_ids()->Assign(leased.tokens().begin(), leased.tokens().end());
  match.mutable_lease_ttl()->set_seconds(600);
  const auto lease = small.client().MatchPrefix(match, Soon());
  ASSERT_TRUE(lease.ok());
  const uint64_t used = small.UsedBytes();

  const Sequence other(4, 8 * kS);
  const auto refused = PutSequence(small.client(), MakePutHeader(ns_, other), other);
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--memory"));
  EXPECT_EQ(small.UsedBytes(), used);
  const auto served = Fetch(small.client(), MakeGet(KeysOf(ns_, leased), {v1::SEGMENT_FORM_EXACT}));
  ASSERT_TRUE(served.ok()) << served.status();
  EXPECT_EQ(served->blobs.size(), 8 * 4);

  ASSERT_TRUE(small.client().Release(lease->lease_id(), Soon()).ok());
  const auto stored = PutSequence(small.client(), MakePutHeader(ns_, other), other);
  EXPECT_TRUE(stored.ok()) << stored.status();
}

TEST_F(BadInputTest, MorePutsAtOnceThanAreAllowed) {
  ServiceLimits limits;
  limits.max_puts = 2;
  TestService small(limits);
  ASSERT_TRUE(small.client().PutProfile(SmallProfile(), Soon()).ok());
  const v1::PutHeader header = MakePutHeader(ns_, sequence_);
  auto first = small.client().Put(header, Soon());
  auto second = small.client().Put(header, Soon());
  ASSERT_TRUE(first.ok() && second.ok());
  const auto third = small.client().Put(header, Soon());
  EXPECT_EQ(third.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("2 puts are running"));
  first->reset();
  second->reset();
  EXPECT_EQ(small.UsedBytes(), 0);
  EXPECT_TRUE(PutSequence(small.client(), header, sequence_).ok());
}

}  // namespace
}  // namespace fourierkv
