#include "compute/model/compressed_dims.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/model/bounded_json.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxTextBytes = size_t{16} << 20;
constexpr int kMaxDepth = 3;  // file, layer, list

template <typename... Args>
absl::Status Wrong(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// One layer's object, and how its lists are called.
class LayerLists {
 public:
  LayerLists(const nlohmann::json& object, std::string field, const KvGeometry& geometry)
      : object_(object), field_(std::move(field)), g_(geometry) {}

  absl::Status CheckKeys() {
    if (!object_.is_object()) return Wrong(field_, " is not an object");
    older_ = object_.contains("self_attn.k_proj");
    split_ = object_.contains("kc_h_list");
    std::vector<std::string> expected = {"self_attn.k_proj", "self_attn.v_proj"};
    if (!older_) {
      expected.clear();
      for (const char* list : {"kc", "kn", "vc", "vn"}) {
        expected.push_back(absl::StrCat(list, "_list"));
        if (split_) expected.push_back(absl::StrCat(list, "_h_list"));
      }
    }
    for (const std::string& key : expected) {
      if (!object_.contains(key)) return Wrong(field_, ": ", key, " is missing");
    }
    for (const auto& [key, value] : object_.items()) {
      if (std::find(expected.begin(), expected.end(), key) == expected.end()) {
        return Wrong(field_, ": '", ForMessage(key), "' is an unknown list");
      }
    }
    return absl::OkStatus();
  }

  // For each channel of the layer whether it is compressed in `part`.
  absl::StatusOr<std::vector<bool>> Compressed(Part part) const {
    const std::string letter = part == Part::kK ? "k" : "v";
    const size_t channels = static_cast<size_t>(g_.kv_heads) * g_.head_dim;
    std::vector<bool> seen(channels), compressed(channels);
    const std::string list = older_ ? absl::StrCat("self_attn.", letter, "_proj") : letter + "c";
    if (absl::Status s = Mark(list, &seen); !s.ok()) return s;
    compressed = seen;
    if (older_) return compressed;
    if (absl::Status s = Mark(letter + "n", &seen); !s.ok()) return s;
    const auto missing = std::find(seen.begin(), seen.end(), false);
    if (missing != seen.end()) {
      return Wrong(field_, ": channel ", missing - seen.begin(), " is neither in ", letter,
                   "c_list nor in ", letter, "n_list");
    }
    return compressed;
  }

 private:
  absl::StatusOr<std::vector<int>> Integers(const std::string& key, size_t most_entries,
                                            int largest) const {
    const nlohmann::json& list = object_[key];
    const std::string where = absl::StrCat(field_, ".", key);
    if (!list.is_array()) return Wrong(where, " is not an array");
    if (list.size() > most_entries) {
      return Wrong(where, " has ", list.size(), " entries; at most ", most_entries, " fit");
    }
    std::vector<int> values;
    for (const nlohmann::json& entry : list) {
      if (!entry.is_number_unsigned() || entry.get<uint64_t>() > static_cast<uint64_t>(largest)) {
        return Wrong(where, "[", values.size(), "] is ", ForMessage(entry.dump()),
                     "; it must be an integer from 0 to ", largest);
      }
      values.push_back(entry.get<int>());
    }
    return values;
  }

  // Sets the channels of one list in `seen`, where none of them may be set yet.
  absl::Status Mark(const std::string& name, std::vector<bool>* seen) const {
    const std::string key = older_ ? name : name + "_list";
    const int channels = static_cast<int>(seen->size());
    const auto list = Integers(key, channels, channels - 1);
    if (!list.ok()) return list.status();
    for (size_t i = 0; i < list->size(); ++i) {
      const int channel = (*list)[i];
      if ((*seen)[channel]) {
        return Wrong(field_, ".", key, "[", i, "]: channel ", channel, " is listed twice");
      }
      (*seen)[channel] = true;
    }
    return split_ ? CheckEnds(name, *list) : absl::OkStatus();
  }

  absl::Status CheckEnds(const std::string& name, const std::vector<int>& list) const {
    const std::string key = name + "_h_list", where = absl::StrCat(field_, ".", key);
    const auto ends = Integers(key, g_.kv_heads, static_cast<int>(list.size()));
    if (!ends.ok()) return ends.status();
    if (ends->size() != g_.kv_heads) {
      return Wrong(where, " has ", ends->size(), " entries; there are ", g_.kv_heads, " KV heads");
    }
    int first = 0;
    for (int h = 0; h < g_.kv_heads; ++h) {
      const int end = (*ends)[h];
      if (end < first) return Wrong(where, "[", h, "] is ", end, ", below the entry before it");
      for (int i = first; i < end; ++i) {
        if (list[i] / g_.head_dim == h) continue;
        return Wrong(field_, ".", name, "_list[", i, "]: channel ", list[i], " is not of head ", h,
                     ", as ", key, " says; heads have ", g_.head_dim, " channels");
      }
      first = end;
    }
    if (first == static_cast<int>(list.size())) return absl::OkStatus();
    return Wrong(where, " ends at ", first, "; ", name, "_list has ", list.size(), " entries");
  }

  const nlohmann::json& object_;
  const std::string field_;
  const KvGeometry& g_;
  bool older_ = false;
  bool split_ = false;
};

}  // namespace

absl::StatusOr<CodecProfile> ImportCompressedDims(absl::string_view json,
                                                  const KvGeometry& geometry,
                                                  const ImportOptions& options) {
  if (absl::Status s = geometry.Validate(); !s.ok()) return s;
  if (json.size() > kMaxTextBytes) {
    return Wrong("the lists are ", json.size(), " bytes; at most ", kMaxTextBytes, " are read");
  }
  const auto parsed = ParseBoundedJson(json, "the file of lists", kMaxDepth);
  if (!parsed.ok()) return parsed.status();

  CodecProfile profile;
  profile.name = options.name;
  profile.geometry = geometry;
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = options.scope;
  profile.evidence["channels"] = "published lists of FourierAttention (arXiv 2506.11886)";
  profile.heads.resize(size_t{2} * geometry.layers * geometry.kv_heads);
  for (int l = 0; l < geometry.layers; ++l) {
    const std::string field = absl::StrCat("Layer_", l);
    if (!parsed->contains(field)) {
      return Wrong(field, " is missing; the model has ", geometry.layers, " layers");
    }
    LayerLists lists((*parsed)[field], field, geometry);
    if (absl::Status s = lists.CheckKeys(); !s.ok()) return s;
    for (Part part : kParts) {
      const auto compressed = lists.Compressed(part);
      if (!compressed.ok()) return compressed.status();
      for (int h = 0; h < geometry.kv_heads; ++h) {
        Band spectral{options.scope.states(), options.coefficient_bits, {}}, resident{0, 16, {}};
        for (int d = 0; d < geometry.head_dim; ++d) {
          const bool is_spectral = (*compressed)[static_cast<size_t>(h) * geometry.head_dim + d];
          (is_spectral ? spectral : resident).channels.push_back(static_cast<uint16_t>(d));
        }
        std::vector<Band>& bands = profile.head(l, h, part).bands;
        if (!spectral.channels.empty()) bands.push_back(std::move(spectral));
        if (!resident.channels.empty()) bands.push_back(std::move(resident));
      }
    }
  }
  if (parsed->size() != static_cast<size_t>(geometry.layers)) {
    return Wrong("the file lists ", parsed->size(), " layers; the model has ", geometry.layers);
  }
  if (absl::Status s = profile.Validate(); !s.ok()) return s;
  return profile;
}

}  // namespace fourierkv
