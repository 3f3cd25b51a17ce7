// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>

#include <string>

#include "observe/connection_end.h"

namespace sockalarm::observe {

// One end of a connection on its way out.
struct Record {
  std::string id;  // event_id()
  Cause cause;
  std::string json;  // to_json()
};

// Where records go. One thread calls, the sink's own: it may take its time. Destroying it gives up what it
// holds.
class Sink {
 public:
  Sink() = default;
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;
  virtual ~Sink() = default;

  // Whether a record would go anywhere now. Any thread.
  virtual bool wants() const noexcept { return true; }
  // An error: this record is lost, and counted by the caller. The next one is tried again.
  virtual Result<void> write(const Record& record) = 0;
  // After some records, when there are no more for now. An error is one of what was written before.
  virtual Result<void> flush() = 0;
  // From now on write() waits for nobody: what it cannot hand over at once is an error. Any thread, also amid
  // a write(). To be had by every sink that waits for another program.
  virtual void stop() noexcept {}
};

}  // namespace sockalarm::observe
