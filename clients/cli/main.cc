// fourierkv: the command line of the service.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "clients/cli/commands.h"
#include "clients/local_stack/local_stack.h"

int main(int argc, char** argv) {
  CLI::App app{"Generate from, look into and tune the KV cache service.", "fourierkv"};
  app.set_version_flag("--version", std::string("fourierkv ") + FOURIERKV_VERSION);
  app.require_subcommand(1);
  fourierkv::Command chosen;
  fourierkv::DeclareAdmin(app, chosen);
  fourierkv::DeclareEval(app, chosen);
  fourierkv::DeclareEvents(app, chosen);
  fourierkv::DeclareGenerate(app, chosen);
  fourierkv::DeclareInspect(app, chosen);
  fourierkv::DeclareProfile(app, chosen);
  fourierkv::DeclareWhyMiss(app, chosen);
  CLI11_PARSE(app, argc, argv);
  fourierkv::LocalStack::StopOnSignals();
  const absl::Status status = chosen();
  if (status.ok()) return 0;
  std::fprintf(stderr, "fourierkv: %s\n", std::string(status.message()).c_str());
  return 1;
}
