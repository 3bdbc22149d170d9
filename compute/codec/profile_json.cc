// The JSON form of a codec profile. Its schema is described in docs/format.md.

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/codec/json_reader.h"
#include "compute/codec/profile.h"

namespace fourierkv {
namespace {

constexpr char kFormat[] = "fourierkv-profile/1";
constexpr size_t kMaxTextBytes = size_t{16} << 20;
// Bounds that keep what is read proportional to the text; Validate checks the exact ones.
constexpr int kMaxLayers = 512;
constexpr int kMaxHeads = 256;
constexpr int kMaxHeadDim = 512;
constexpr int kMaxBands = 8;
constexpr int kMaxCoefficients = 64;

// ---- writing ----

// White space is the only difference between the canonical and the pretty form.
class Writer {
 public:
  explicit Writer(bool pretty) : pretty_(pretty) {}

  std::string Write(const CodecProfile& profile) {
    const KvGeometry& g = profile.geometry;
    Put("{");
    Break(1), Key("basis"), String(BasisName(profile.basis)), Put(",");
    Break(1), Key("format"), String(kFormat), Put(",");
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

  void WriteHead(const HeadProfile& head) {
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

// ---- reading ----

absl::Status RequireKey(const JsonReader& reader, bool present, absl::string_view key) {
  return present ? absl::OkStatus() : reader.Error(absl::StrCat("key '", key, "' is missing"));
}

absl::Status UnknownKey(const JsonReader& reader) { return reader.Error("is an unknown key"); }

absl::Status ReadBand(JsonReader& reader, Band* band) {
  bool has_bits = false;
  bool has_channels = false;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    if (key == "bits") {
      has_bits = true;
      return reader.ReadInteger(1, 16, &band->bits);
    }
    if (key == "coefficients") return reader.ReadInteger(1, kMaxCoefficients, &band->coefficients);
    if (key == "channels") {
      has_channels = true;
      return reader.ReadArray(kMaxHeadDim, [&](size_t) {
        int channel = 0;
        if (auto s = reader.ReadInteger(0, kMaxHeadDim - 1, &channel); !s.ok()) return s;
        band->channels.push_back(static_cast<uint16_t>(channel));
        return absl::OkStatus();
      });
    }
    return UnknownKey(reader);
  });
  if (!status.ok()) return status;
  if (auto s = RequireKey(reader, has_bits, "bits"); !s.ok()) return s;
  return RequireKey(reader, has_channels, "channels");
}

absl::Status ReadPart(JsonReader& reader, std::vector<HeadProfile>* heads) {
  return reader.ReadArray(kMaxHeads, [&](size_t) {
    HeadProfile& head = heads->emplace_back();
    return reader.ReadArray(kMaxBands,
                            [&](size_t) { return ReadBand(reader, &head.bands.emplace_back()); });
  });
}

struct LayerHeads {
  std::vector<HeadProfile> k, v;
};

absl::Status ReadLayer(JsonReader& reader, LayerHeads* layer) {
  bool has_k = false;
  bool has_v = false;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    if (key != "k" && key != "v") return UnknownKey(reader);
    (key == "k" ? has_k : has_v) = true;
    return ReadPart(reader, key == "k" ? &layer->k : &layer->v);
  });
  if (!status.ok()) return status;
  if (auto s = RequireKey(reader, has_k, "k"); !s.ok()) return s;
  return RequireKey(reader, has_v, "v");
}

absl::Status ReadGeometry(JsonReader& reader, KvGeometry* geometry) {
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    if (key == "layers") return reader.ReadInteger(1, kMaxLayers, &geometry->layers);
    if (key == "kv_heads") return reader.ReadInteger(1, kMaxHeads, &geometry->kv_heads);
    if (key == "head_dim") return reader.ReadInteger(8, kMaxHeadDim, &geometry->head_dim);
    return UnknownKey(reader);
  });
  if (!status.ok()) return status;
  if (auto s = RequireKey(reader, geometry->layers > 0, "layers"); !s.ok()) return s;
  if (auto s = RequireKey(reader, geometry->kv_heads > 0, "kv_heads"); !s.ok()) return s;
  return RequireKey(reader, geometry->head_dim > 0, "head_dim");
}

absl::Status ReadFormat(JsonReader& reader) {
  std::string format;
  if (auto s = reader.ReadString(64, &format); !s.ok()) return s;
  if (format == kFormat) return absl::OkStatus();
  return reader.Error(absl::StrCat("is '", format, "'; this program reads '", kFormat, "'"));
}

absl::Status ReadBasis(JsonReader& reader, BasisKind* basis) {
  std::string name;
  if (auto s = reader.ReadString(64, &name); !s.ok()) return s;
  const absl::StatusOr<BasisKind> kind = ParseBasisKind(name);
  if (!kind.ok()) return reader.Error(kind.status().message());
  *basis = *kind;
  return absl::OkStatus();
}

absl::Status SizeError(const std::string& field, size_t found, const char* what, int expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", found, " ", what, "; the geometry says ", expected));
}

// Moves the heads to their places in `profile`, whose geometry is read.
absl::Status PlaceHeads(std::vector<LayerHeads> layers, CodecProfile* profile) {
  const KvGeometry& g = profile->geometry;
  if (layers.size() != g.layers) return SizeError("layers", layers.size(), "layers", g.layers);
  for (size_t l = 0; l < layers.size(); ++l) {
    const std::string field = absl::StrCat("layers[", l, "]");
    if (layers[l].k.size() != g.kv_heads) {
      return SizeError(field + ".k", layers[l].k.size(), "heads", g.kv_heads);
    }
    if (layers[l].v.size() != g.kv_heads) {
      return SizeError(field + ".v", layers[l].v.size(), "heads", g.kv_heads);
    }
    for (int h = 0; h < g.kv_heads; ++h) {
      profile->heads.push_back(std::move(layers[l].k[h]));
      profile->heads.push_back(std::move(layers[l].v[h]));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadProfile(JsonReader& reader, CodecProfile* profile) {
  constexpr absl::string_view kKeys[] = {"basis",  "format", "geometry",
                                         "layers", "name",   "segment_tokens"};
  std::vector<LayerHeads> layers;
  std::vector<std::string> present;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    present.emplace_back(key);
    if (key == "format") return ReadFormat(reader);
    if (key == "name") return reader.ReadString(128, &profile->name);
    if (key == "basis") return ReadBasis(reader, &profile->basis);
    if (key == "segment_tokens") return reader.ReadInteger(128, 1024, &profile->segment_tokens);
    if (key == "geometry") return ReadGeometry(reader, &profile->geometry);
    if (key == "layers") {
      return reader.ReadArray(kMaxLayers,
                              [&](size_t) { return ReadLayer(reader, &layers.emplace_back()); });
    }
    return UnknownKey(reader);
  });
  if (!status.ok()) return status;
  if (auto s = reader.ReadEnd(); !s.ok()) return s;
  for (absl::string_view key : kKeys) {
    bool found = false;
    for (const std::string& name : present) found = found || key == name;
    if (auto s = RequireKey(reader, found, key); !s.ok()) return s;
  }
  return PlaceHeads(std::move(layers), profile);
}

absl::Status TooLarge() {
  return absl::InvalidArgumentError(
      absl::StrCat("profile text is larger than ", kMaxTextBytes, " bytes"));
}

}  // namespace

std::string CodecProfile::ToJson() const { return Writer(/*pretty=*/false).Write(*this); }

std::string CodecProfile::ToPrettyJson() const { return Writer(/*pretty=*/true).Write(*this); }

Digest CodecProfile::Id() const {
  const std::string text = ToJson();
  return Sha256().AddBytes(text.data(), text.size()).Finish();
}

absl::StatusOr<CodecProfile> CodecProfile::FromJson(absl::string_view text) {
  if (text.size() > kMaxTextBytes) return TooLarge();
  JsonReader reader(text);
  CodecProfile profile;
  if (auto s = ReadProfile(reader, &profile); !s.ok()) return s;
  if (auto s = profile.Validate(); !s.ok()) return s;
  return profile;
}

absl::StatusOr<CodecProfile> CodecProfile::FromFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat("cannot open profile '", path, "': ", std::strerror(errno)));
  }
  // Read rather than asked for its size, so that pipes work; one byte more than allowed is enough.
  std::string text(kMaxTextBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot read profile '", path, "': ", std::strerror(errno)));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  absl::StatusOr<CodecProfile> profile = FromJson(text);
  if (profile.ok()) return profile;
  return absl::Status(profile.status().code(),
                      absl::StrCat("profile '", path, "': ", profile.status().message()));
}

}  // namespace fourierkv
