// What a long suite found: a table of figures, each next to what was promised.

#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace fourierkv {

class Figures {
 public:
  // Something to know; nothing was promised.
  void Note(const std::string& name, const std::string& value);
  // A promise that holds on any machine.
  void Promise(const std::string& name, const std::string& value, const std::string& promised,
               bool kept);
  // One about time, which a machine that has other work to do breaks by itself: counts only if the
  // suite runs with --strict.
  void Target(const std::string& name, const std::string& value, const std::string& target,
              bool met);

  // Prints all of it. The exit status: 0 if all promises were kept, and with `strict` all targets.
  int Finish(bool strict) const;

 private:
  struct Row {
    std::string name;
    std::string value;
    std::string promised;
    std::string verdict;
  };
  std::vector<Row> rows_;
  bool kept_ = true;
  bool met_ = true;
};

std::string Milliseconds(absl::Duration d);
std::string Mebibytes(int64_t bytes);
std::string Percent(double fraction);

}  // namespace fourierkv
