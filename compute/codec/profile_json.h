// What the writer and the reader of a profile's JSON form share. Schema: docs/format.md.

#pragma once

namespace fourierkv {

inline constexpr char kProfileFormat[] = "fourierkv-profile/1";

}  // namespace fourierkv
