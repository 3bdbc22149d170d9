// The subcommands of `fourierkv`. Each declares its flags and runs when CLI11 has parsed them.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace CLI {
class App;
}

namespace fourierkv {

// What main() runs after parsing: the chosen subcommand. Results go to stdout, progress to stderr.
using Command = std::function<absl::Status()>;

void DeclareAdmin(CLI::App& app, Command& chosen);
void DeclareEval(CLI::App& app, Command& chosen);
void DeclareEvents(CLI::App& app, Command& chosen);
void DeclareGenerate(CLI::App& app, Command& chosen);
void DeclareInspect(CLI::App& app, Command& chosen);
void DeclareProfile(CLI::App& app, Command& chosen);
void DeclareWhyMiss(CLI::App& app, Command& chosen);

// At most 64 MiB. NotFound or InvalidArgument naming the file.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path);

// Token ids that are separated by blanks, commas or lines. Errors as above.
absl::StatusOr<std::vector<int32_t>> ReadTokenFile(const std::string& path);

}  // namespace fourierkv
