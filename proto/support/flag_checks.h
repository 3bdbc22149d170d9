// Checks of flags that CLI11 does not have.

#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {

// CLI::Range would let NaN through.
inline CLI::Validator SecondsBetween(double least, double most) {
  return CLI::Validator(
      [least, most](const std::string& text) {
        double value = 0;
        const bool right = absl::SimpleAtod(text, &value) && value >= least && value <= most;
        return right ? std::string()
                     : absl::StrCat("must be ", least, " to ", most, " seconds, not ", text);
      },
      "SECONDS");
}

}  // namespace fourierkv
