// The archive section of a profile's JSON form. Schema: docs/format.md.

#pragma once

#include <string>

#include "absl/status/status.h"
#include "compute/codec/archive_profile.h"
#include "compute/codec/json_reader.h"

namespace fourierkv {

// Reads the object at the reader's place. `layers` receives the number of layers it has, all with
// as many heads. Values are checked by ArchiveProfile::Validate.
absl::Status ReadArchive(JsonReader& reader, ArchiveProfile* archive, int* layers);

// The object, keys sorted and no spaces; `archive` must be valid for `geometry`. `line_break` is
// put before every head: empty in canonical text.
std::string ArchiveToJson(const ArchiveProfile& archive, const KvGeometry& geometry,
                          absl::string_view line_break);

}  // namespace fourierkv
