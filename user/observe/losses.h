// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>

namespace sockalarm::observe {

// Ends of connections that did not get where they should, by the stage that they were lost at. Every stage
// counts what it drops, so that what arrived plus this is what happened. Any thread.
struct Losses {
  using Count = std::atomic<std::uint64_t>;
  Count rate_limit{0};     // beyond the limit of the export
  Count queue{0};          // a sink did not keep up
  Count sink{0};           // a sink failed: a closed pipe, a full disk below a file
  Count spool_size{0};     // dropped as the oldest, for the size of the spool
  Count spool_age{0};      // dropped as too old
  Count spool_write{0};    // not taken: no space on the disk, or another error of writing
  Count spool_corrupt{0};  // segments with damage before their end; how many ends they had is not known
};

}  // namespace sockalarm::observe
