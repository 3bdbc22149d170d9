// fourierkv profile search.

#pragma once

#include "clients/cli/commands.h"

namespace fourierkv {

// Adds `search` to the group of profile commands.
void DeclareProfileSearch(CLI::App& group, Command& chosen);

}  // namespace fourierkv
