// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/action.h>
#include <sockalarm/sockalarm_c.h>
#include <sockalarm/watcher.h>

#include <memory>

#include "c_abi/news_queue.h"

// What is behind the opaque handles.

struct sockalarm_context {
  sockalarm::Options options;  // for another Watcher after fork()
  sockalarm::Watcher watcher;
  std::shared_ptr<sockalarm::c_abi::NewsQueue> news;  // post actions keep it, too
};

struct sockalarm_watch {
  sockalarm::Watch watch;
};

struct sockalarm_actions {
  sockalarm::ActionChain chain;  // made anew by each add, so that arming only copies a pointer
};

struct sockalarm_alarm {
  sockalarm::Alarm alarm;
};
