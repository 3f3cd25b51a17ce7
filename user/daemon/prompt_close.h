// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <ctime>

namespace sockalarm::daemon {

// Closes a connection that nobody has read from. What its client sent along is closed with it, in this
// thread: a socket that lingers (SO_LINGER, socket(7)) would hold it up for as long as the client likes. A
// signal ends that wait (sk_stream_wait_close(), net/core/stream.c). For the thread that made it.
class PromptClose {
 public:
  PromptClose();
  ~PromptClose();
  PromptClose(const PromptClose&) = delete;
  PromptClose& operator=(const PromptClose&) = delete;

  bool works() const noexcept { return works_; }
  void operator()(UniqueFd fd) const noexcept;

 private:
  timer_t timer_{};
  bool works_ = false;
};

}  // namespace sockalarm::daemon
