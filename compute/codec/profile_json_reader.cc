// Reads the JSON form of a codec profile. Its schema is described in docs/format.md.

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/codec/archive_json.h"
#include "compute/codec/json_reader.h"
#include "compute/codec/profile.h"
#include "compute/codec/profile_json.h"
#include "compute/codec/profile_limits.h"
#include "compute/codec/rotation.h"

namespace fourierkv {
namespace {

// These keep what is read proportional to the text; Validate checks the exact bounds.
using namespace profile_limits;  // NOLINT(google-build-using-namespace): constants only

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
      return reader.ReadInteger(1, 32, &band->bits);
    }
    if (key == "coefficients")
      return reader.ReadInteger(1, kMaxSequenceStates, &band->coefficients);
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

absl::Status ReadBands(JsonReader& reader, std::vector<Band>* bands) {
  return reader.ReadArray(kMaxBands,
                          [&](size_t) { return ReadBand(reader, &bands->emplace_back()); });
}

absl::Status ReadRotation(JsonReader& reader, std::vector<int16_t>* rotation) {
  std::string text;
  constexpr size_t kMaxSize = RotationBase64Size(size_t{kMaxHeadDim} * kMaxHeadDim);
  if (auto s = reader.ReadString(kMaxSize, &text); !s.ok()) return s;
  if (text.empty()) return reader.Error("is empty; leave it out");
  absl::StatusOr<std::vector<int16_t>> values = RotationFromBase64(text);
  if (!values.ok()) return reader.Error(values.status().message());
  *rotation = *std::move(values);
  return absl::OkStatus();
}

absl::Status ReadRotatedHead(JsonReader& reader, HeadProfile* head) {
  bool has_bands = false;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    if (key == "rotation") return ReadRotation(reader, &head->rotation);
    if (key != "bands") return UnknownKey(reader);
    has_bands = true;
    return ReadBands(reader, &head->bands);
  });
  if (!status.ok()) return status;
  return RequireKey(reader, has_bands, "bands");
}

absl::Status ReadPart(JsonReader& reader, std::vector<HeadProfile>* heads) {
  return reader.ReadArray(kMaxHeads, [&](size_t) {
    HeadProfile& head = heads->emplace_back();
    return reader.AtObject() ? ReadRotatedHead(reader, &head) : ReadBands(reader, &head.bands);
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
  if (format == kProfileFormat) return absl::OkStatus();
  return reader.Error(absl::StrCat("is '", format, "'; this program reads '", kProfileFormat, "'"));
}

absl::Status ReadBasis(JsonReader& reader, BasisKind* basis) {
  std::string name;
  if (auto s = reader.ReadString(64, &name); !s.ok()) return s;
  const absl::StatusOr<BasisKind> kind = ParseBasisKind(name);
  if (!kind.ok()) return reader.Error(kind.status().message());
  *basis = *kind;
  return absl::OkStatus();
}

absl::Status ReadEvidence(JsonReader& reader, std::map<std::string, std::string>* evidence) {
  return reader.ReadObject([&](absl::string_view key) {
    if (evidence->size() == kMaxEvidence) {
      return reader.Error(absl::StrCat("is one more than the ", kMaxEvidence, " entries allowed"));
    }
    return reader.ReadString(kMaxEvidenceValue, &(*evidence)[std::string(key)]);
  });
}

absl::Status ReadSequence(JsonReader& reader, SequenceScope* scope) {
  constexpr int kMax = 1 << 20;  // Validate knows the exact bounds
  std::vector<std::string> present;
  std::string rescale;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    present.emplace_back(key);
    if (key == "frequencies") return reader.ReadInteger(1, kMax, &scope->frequencies);
    if (key == "recent_tokens") return reader.ReadInteger(1, kMax, &scope->recent_tokens);
    if (key == "sink_tokens") return reader.ReadInteger(1, kMax, &scope->sink_tokens);
    if (key != "rescale") return UnknownKey(reader);
    if (auto s = reader.ReadString(16, &rescale); !s.ok()) return s;
    if (rescale == "none" || rescale == "peak") return absl::OkStatus();
    return reader.Error(absl::StrCat("is '", rescale, "'; it must be none or peak"));
  });
  if (!status.ok()) return status;
  for (absl::string_view key : {"frequencies", "recent_tokens", "rescale", "sink_tokens"}) {
    bool found = false;
    for (const std::string& name : present) found = found || key == name;
    if (auto s = RequireKey(reader, found, key); !s.ok()) return s;
  }
  scope->peak_rescale = rescale == "peak";
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
  int archive_layers = 0;
  std::vector<std::string> present;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    present.emplace_back(key);
    if (key == "archive") return ReadArchive(reader, &profile->archive.emplace(), &archive_layers);
    if (key == "format") return ReadFormat(reader);
    if (key == "name") return reader.ReadString(kMaxName, &profile->name);
    if (key == "basis") return ReadBasis(reader, &profile->basis);
    if (key == "segment_tokens") return reader.ReadInteger(0, 1024, &profile->segment_tokens);
    if (key == "sequence") return ReadSequence(reader, &profile->sequence.emplace());
    if (key == "evidence") return ReadEvidence(reader, &profile->evidence);
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
  if (profile->archive && archive_layers != profile->geometry.layers) {
    return SizeError("archive.layers", archive_layers, "layers", profile->geometry.layers);
  }
  return PlaceHeads(std::move(layers), profile);
}

absl::Status TooLarge() {
  return absl::InvalidArgumentError(
      absl::StrCat("profile text is larger than ", kMaxTextBytes, " bytes"));
}

}  // namespace

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
  // Read rather than asked for its size, so that pipes work.
  constexpr size_t kStep = size_t{1} << 20;
  std::string text;
  while (file && text.size() <= kMaxTextBytes) {
    const size_t size = text.size();
    text.resize(size + kStep);
    file.read(text.data() + size, kStep);
    text.resize(size + static_cast<size_t>(file.gcount()));
  }
  if (file.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot read profile '", path, "': ", std::strerror(errno)));
  }
  absl::StatusOr<CodecProfile> profile = FromJson(text);
  if (profile.ok()) return profile;
  return absl::Status(profile.status().code(),
                      absl::StrCat("profile '", path, "': ", profile.status().message()));
}

}  // namespace fourierkv
