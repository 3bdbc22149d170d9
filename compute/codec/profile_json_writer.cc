// Writes the JSON form of a codec profile. Its schema is described in docs/format.md.

#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/codec/archive_json.h"
#include "compute/codec/profile.h"
#include "compute/codec/profile_json.h"
#include "compute/codec/rotation.h"

namespace fourierkv {
namespace {

// White space is the only difference between the canonical and the pretty form.
class Writer {
 public:
  explicit Writer(bool pretty) : pretty_(pretty) {}

  std::string Write(const CodecProfile& profile) {
    const KvGeometry& g = profile.geometry;
    Put("{");
    if (profile.archive) Break(1), Key("archive"), WriteArchive(profile), Put(",");
    Break(1), Key("basis"), String(BasisName(profile.basis)), Put(",");
    if (!profile.evidence.empty()) Break(1), Key("evidence"), WriteEvidence(profile), Put(",");
    Break(1), Key("format"), String(kProfileFormat), Put(",");
    Break(1), Key("geometry"), Put("{");
    Key("head_dim"), Number(g.head_dim), Comma();
    Key("kv_heads"), Number(g.kv_heads), Comma();
    Key("layers"), Number(g.layers), Put("},");
    Break(1), Key("layers"), Put("[");
    for (int layer = 0; layer < g.layers; ++layer) {
      if (layer > 0) Put(",");
      Break(2), Put("{");
      Break(3), Key("k"), WritePart(profile, layer, Part::kK), Put(",");
      Break(3), Key("v"), WritePart(profile, layer, Part::kV);
      Break(2), Put("}");
    }
    Break(1), Put("],");
    Break(1), Key("name"), String(profile.name), Put(",");
    Break(1), Key("segment_tokens"), Number(profile.segment_tokens);
    if (profile.sequence) Put(","), WriteSequence(*profile.sequence);
    Break(0), Put("}");
    if (pretty_) Put("\n");
    return std::move(out_);
  }

 private:
  void WritePart(const CodecProfile& profile, int layer, Part part) {
    Put("[");
    for (int head = 0; head < profile.geometry.kv_heads; ++head) {
      if (head > 0) Put(",");
      Break(4), WriteHead(profile.head(layer, head, part));
    }
    Break(3), Put("]");
  }

  void WriteSequence(const SequenceScope& scope) {
    Break(1), Key("sequence"), Put("{");
    Key("frequencies"), Number(scope.frequencies), Comma();
    Key("recent_tokens"), Number(scope.recent_tokens), Comma();
    Key("rescale"), String(scope.peak_rescale ? "peak" : "none"), Comma();
    Key("sink_tokens"), Number(scope.sink_tokens), Put("}");
  }

  void WriteArchive(const CodecProfile& profile) {
    Put(ArchiveToJson(*profile.archive, profile.geometry, pretty_ ? "\n    " : ""));
  }

  void WriteEvidence(const CodecProfile& profile) {
    Put("{");
    const char* separator = "";
    for (const auto& [key, value] : profile.evidence) {
      Put(separator);
      Break(2), Key(key), String(value);
      separator = ",";
    }
    Break(1), Put("}");
  }

  // Only rotated heads are objects: the text of the others stays what it always was.
  void WriteHead(const HeadProfile& head) {
    if (head.rotation.empty()) return WriteBands(head);
    Put("{"), Key("bands"), WriteBands(head), Comma();
    Key("rotation"), String(RotationToBase64(head.rotation)), Put("}");
  }

  void WriteBands(const HeadProfile& head) {
    Put("[");
    for (size_t b = 0; b < head.bands.size(); ++b) {
      const Band& band = head.bands[b];
      if (b > 0) Comma();
      Put("{"), Key("bits"), Number(band.bits), Comma();
      Key("channels"), Put("[");
      for (size_t i = 0; i < band.channels.size(); ++i) {
        if (i > 0) Comma();
        Number(band.channels[i]);
      }
      Put("]");
      if (band.spectral()) Comma(), Key("coefficients"), Number(band.coefficients);
      Put("}");
    }
    Put("]");
  }

  void Put(absl::string_view text) { out_.append(text.data(), text.size()); }
  void Number(int value) { absl::StrAppend(&out_, value); }
  void Comma() { Put(pretty_ ? ", " : ","); }
  void Key(absl::string_view key) { String(key), Put(pretty_ ? ": " : ":"); }
  void String(absl::string_view text) {  // printable ASCII
    Put("\"");
    for (char c : text) {
      if (c == '"' || c == '\\') out_.push_back('\\');
      out_.push_back(c);
    }
    Put("\"");
  }
  void Break(int depth) {
    if (pretty_) out_.append("\n").append(static_cast<size_t>(depth) * 2, ' ');
  }

  bool pretty_;
  std::string out_;
};

}  // namespace

std::string CodecProfile::ToJson() const { return Writer(/*pretty=*/false).Write(*this); }

std::string CodecProfile::ToPrettyJson() const { return Writer(/*pretty=*/true).Write(*this); }

Digest CodecProfile::Id() const {
  const std::string text = ToJson();
  return Sha256().AddBytes(text.data(), text.size()).Finish();
}

}  // namespace fourierkv
