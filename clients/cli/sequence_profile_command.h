// fourierkv profile import and faithful: profiles in the published form of FourierAttention.

#pragma once

#include "clients/cli/commands.h"
#include "compute/codec/profile.h"

namespace fourierkv {

// Adds both to the subcommands of `profile`.
void DeclareSequenceProfiles(CLI::App* profile, Command& chosen);

// A summary for people, or JSON. Requires profile.sequence.
void PrintSequenceProfile(const CodecProfile& profile, bool json);

}  // namespace fourierkv
