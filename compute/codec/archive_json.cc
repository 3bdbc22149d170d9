#include "compute/codec/archive_json.h"

#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "compute/codec/profile_limits.h"

namespace fourierkv {
namespace {

// These keep what is read proportional to the text; Validate checks the exact bounds.
using namespace profile_limits;  // NOLINT(google-build-using-namespace): constants only

// Vectors stand in the text as base64 of their little-endian bytes: standard alphabet, padded.
template <class T>
std::string ToBase64(const std::vector<T>& values) {
  std::string text;
  absl::Base64Escape(
      absl::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)),
      &text);
  return text;
}

template <class T>
absl::Status ReadBase64(JsonReader& reader, size_t max_values, std::vector<T>* values) {
  std::string text;
  const size_t max_text = (max_values * sizeof(T) + 2) / 3 * 4;
  if (auto s = reader.ReadString(max_text, &text); !s.ok()) return s;
  std::string bytes;
  std::string canonical;
  if (absl::Base64Unescape(text, &bytes)) absl::Base64Escape(bytes, &canonical);
  if (text.empty() || canonical != text) return reader.Error("is not base64 of at least one byte");
  if (bytes.size() % sizeof(T) != 0) {
    return reader.Error(absl::StrCat("has ", bytes.size(), " bytes; values have ", sizeof(T)));
  }
  values->resize(bytes.size() / sizeof(T));
  std::memcpy(values->data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::Status ReadHead(JsonReader& reader, ArchiveHead* head) {
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    if (key == "classes") {
      return ReadBase64(reader, size_t{kMaxHeadDim} * kArchiveOctaves, &head->classes);
    }
    if (key == "mean") return ReadBase64(reader, kMaxHeadDim, &head->mean);
    if (key == "rotation") {
      return ReadBase64(reader, size_t{kMaxHeadDim} * kMaxHeadDim, &head->rotation);
    }
    if (key == "scale") return ReadBase64(reader, kMaxHeadDim, &head->scale);
    if (key == "step") return ReadBase64(reader, kMaxHeadDim, &head->step);
    return reader.Error("is an unknown key");
  });
  if (!status.ok()) return status;
  if (head->classes.empty()) return reader.Error("key 'classes' is missing");
  if (head->mean.empty()) return reader.Error("key 'mean' is missing");
  if (head->step.empty()) return reader.Error("key 'step' is missing");
  return absl::OkStatus();
}

absl::Status ReadHeads(JsonReader& reader, std::vector<ArchiveHead>* heads) {
  return reader.ReadArray(kMaxHeads,
                          [&](size_t) { return ReadHead(reader, &heads->emplace_back()); });
}

// Appends the heads of a layer in the order of ArchiveProfile::heads.
absl::Status ReadLayer(JsonReader& reader, ArchiveProfile* archive) {
  std::vector<ArchiveHead> k;
  std::vector<ArchiveHead> v;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    if (key != "k" && key != "v") return reader.Error("is an unknown key");
    return ReadHeads(reader, key == "k" ? &k : &v);
  });
  if (!status.ok()) return status;
  if (k.empty()) return reader.Error("key 'k' is missing, or has no heads");
  if (k.size() != v.size()) {
    return reader.Error(absl::StrCat("has ", k.size(), " heads of K and ", v.size(), " of V"));
  }
  for (size_t h = 0; h < k.size(); ++h) {
    archive->heads.push_back(std::move(k[h]));
    archive->heads.push_back(std::move(v[h]));
  }
  return absl::OkStatus();
}

std::string HeadToJson(const ArchiveHead& head) {
  std::string text = absl::StrCat("{\"classes\":\"", ToBase64(head.classes), "\",\"mean\":\"",
                                  ToBase64(head.mean), "\"");
  if (!head.rotation.empty()) {
    absl::StrAppend(&text, ",\"rotation\":\"", ToBase64(head.rotation), "\"");
  }
  if (!head.scale.empty()) absl::StrAppend(&text, ",\"scale\":\"", ToBase64(head.scale), "\"");
  absl::StrAppend(&text, ",\"step\":\"", ToBase64(head.step), "\"}");
  return text;
}

}  // namespace

absl::Status ReadArchive(JsonReader& reader, ArchiveProfile* archive, int* layers) {
  *layers = 0;
  size_t heads = 0;  // of every layer
  bool has_rounding = false;
  const absl::Status status = reader.ReadObject([&](absl::string_view key) {
    if (key == "probabilities") return ReadBase64(reader, 1 << 16, &archive->probabilities);
    if (key == "rope_frequencies") {
      return ReadBase64(reader, kMaxHeadDim / 2, &archive->rope_frequencies);
    }
    if (key == "rounding") {
      has_rounding = true;
      return reader.ReadInteger(1, 128, &archive->rounding);
    }
    if (key != "layers") return reader.Error("is an unknown key");
    return reader.ReadArray(kMaxLayers, [&](size_t) {
      const size_t before = archive->heads.size();
      if (auto s = ReadLayer(reader, archive); !s.ok()) return s;
      const size_t found = archive->heads.size() - before;
      if (++*layers == 1) heads = found;
      if (found == heads) return absl::OkStatus();
      return reader.Error(
          absl::StrCat("has ", found / 2, " heads; layers before have ", heads / 2));
    });
  });
  if (!status.ok()) return status;
  if (archive->probabilities.empty()) return reader.Error("key 'probabilities' is missing");
  if (archive->rope_frequencies.empty()) return reader.Error("key 'rope_frequencies' is missing");
  if (!has_rounding) return reader.Error("key 'rounding' is missing");
  if (*layers == 0) return reader.Error("key 'layers' is missing, or has no layers");
  return absl::OkStatus();
}

std::string ArchiveToJson(const ArchiveProfile& archive, const KvGeometry& geometry,
                          absl::string_view line_break) {
  std::string text = "{\"layers\":[";
  for (int layer = 0; layer < geometry.layers; ++layer) {
    if (layer > 0) text.push_back(',');
    for (Part part : kParts) {
      absl::StrAppend(&text, part == Part::kK ? "{\"k\":[" : ",\"v\":[");
      for (int h = 0; h < geometry.kv_heads; ++h) {
        absl::StrAppend(&text, h > 0 ? "," : "", line_break,
                        HeadToJson(archive.head(geometry, layer, h, part)));
      }
      text.push_back(']');
    }
    text.push_back('}');
  }
  absl::StrAppend(&text, "],\"probabilities\":\"", ToBase64(archive.probabilities),
                  "\",\"rope_frequencies\":\"", ToBase64(archive.rope_frequencies),
                  "\",\"rounding\":", archive.rounding, "}");
  return text;
}

}  // namespace fourierkv
