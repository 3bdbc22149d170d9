#include "clients/search/search_state.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {

absl::StatusOr<SearchState> SearchState::Open(const std::string& path, const std::string& inputs) {
  SearchState state;
  state.path_ = path;
  state.inputs_ = inputs;
  std::ifstream file(path, std::ios::binary);
  if (!file) return state;
  std::stringstream text;
  text << file.rdbuf();
  const nlohmann::json json =
      nlohmann::json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("inputs") || !json["inputs"].is_string() ||
      !json.contains("measured") || !json["measured"].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not the state of a profile search; name another file"));
  }
  if (json["inputs"].get<std::string>() != inputs) {
    return absl::FailedPreconditionError(
        absl::StrCat(path,
                     " belongs to a search with another model, text or options; delete it or "
                     "name another file"));
  }
  for (const auto& [name, value] : json["measured"].items()) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", name, " is not a number"));
    }
    state.values_[name] = value.get<double>();
  }
  return state;
}

std::optional<double> SearchState::Find(const std::string& name) const {
  const auto it = values_.find(name);
  if (it == values_.end()) return std::nullopt;
  return it->second;
}

absl::Status SearchState::Put(const std::string& name, double value) {
  values_[name] = value;
  if (path_.empty()) return absl::OkStatus();
  const std::string temporary = path_ + ".new";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << nlohmann::json{{"inputs", inputs_}, {"measured", values_}}.dump(1) << '\n';
  file.close();
  if (!file || std::rename(temporary.c_str(), path_.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", path_));
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
