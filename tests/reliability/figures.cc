#include "tests/reliability/figures.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"

namespace fourierkv {

void Figures::Note(const std::string& name, const std::string& value) {
  rows_.push_back({name, value, "", ""});
}

void Figures::Promise(const std::string& name, const std::string& value,
                      const std::string& promised, bool kept) {
  rows_.push_back({name, value, promised, kept ? "kept" : "BROKEN"});
  kept_ = kept_ && kept;
}

void Figures::Target(const std::string& name, const std::string& value, const std::string& target,
                     bool met) {
  rows_.push_back({name, value, target, met ? "met" : "missed"});
  met_ = met_ && met;
}

int Figures::Finish(bool strict) const {
  size_t name = 6;
  size_t value = 5;
  size_t promised = 8;
  for (const Row& row : rows_) {
    name = std::max(name, row.name.size());
    value = std::max(value, row.value.size());
    promised = std::max(promised, row.promised.size());
  }
  const auto print = [&](const Row& row) {
    std::printf("%-*s  %*s  %-*s  %s\n", static_cast<int>(name), row.name.c_str(),
                static_cast<int>(value), row.value.c_str(), static_cast<int>(promised),
                row.promised.c_str(), row.verdict.c_str());
  };
  print({"figure", "value", "promised", ""});
  for (const Row& row : rows_) print(row);
  std::fflush(stdout);
  return kept_ && (met_ || !strict) ? 0 : 1;
}

std::string Milliseconds(absl::Duration d) {
  return absl::StrFormat("%.1f ms", absl::ToDoubleMilliseconds(d));
}

std::string Mebibytes(int64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string Percent(double fraction) { return absl::StrFormat("%.1f%%", 100 * fraction); }

}  // namespace fourierkv
