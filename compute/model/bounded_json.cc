#include "compute/model/bounded_json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {

std::string ForMessage(absl::string_view text) {
  constexpr size_t kMax = 80;
  if (text.size() <= kMax) return absl::CHexEscape(text);
  return absl::StrCat(absl::CHexEscape(text.substr(0, kMax)), "...");
}

absl::StatusOr<nlohmann::json> ParseBoundedJson(absl::string_view text, absl::string_view what,
                                                int max_depth) {
  using Event = nlohmann::json::parse_event_t;
  bool too_deep = false;
  std::string twice;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, Event event, nlohmann::json& parsed) {
    if (depth >= max_depth && (event == Event::object_start || event == Event::array_start)) {
      too_deep = true;
      return false;  // its content is not kept, so that memory stays bounded
    }
    if (too_deep) return true;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && twice.empty()) {
      const std::string& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) twice = absl::StrCat("'", ForMessage(key), "'");
    }
    return true;
  };
  nlohmann::json json = nlohmann::json::parse(text.data(), text.data() + text.size(), watch,
                                              /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " nests deeper than ", max_depth, " levels"));
  }
  if (!twice.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " gives the key ", twice, " twice"));
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is not a JSON object"));
  }
  return json;
}

}  // namespace fourierkv
