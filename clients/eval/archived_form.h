// Caches whose segments have been archived and fetched back.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "clients/eval/cache_form.h"
#include "compute/codec/archive_codec.h"

namespace fourierkv {

// Every segment that a compact cache with a recent window of W tokens would compress has been
// archived and decoded again, and is attended to as dense values. `backend` must outlive it.
std::unique_ptr<CacheForm> MakeArchivedForm(std::string name,
                                            std::shared_ptr<const ArchiveCodec> codec,
                                            int64_t recent_window, ComputeBackend* backend);

}  // namespace fourierkv
