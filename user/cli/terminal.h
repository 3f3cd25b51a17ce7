// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>
#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>
#include <termios.h>

#include <array>
#include <csignal>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace sockalarm::cli {

// A program that has the whole terminal, on its other screen. It is given back by the destructor, and while
// the program is stopped by Ctrl-Z. Signals come by a descriptor, so those of this thread are blocked
// meanwhile.
class Terminal {
 public:
  struct Size {
    std::size_t width = 80, height = 24;
  };

  // Empty: stdout is no terminal, or one that cannot do this (TERM=dumb).
  static Result<std::unique_ptr<Terminal>> take();
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  Size size() const;
  void show(const std::string& screen) const;

  std::span<pollfd> waited_for() { return {waited_for_.data(), keys_ ? 2U : 1U}; }
  // What has come, after a wait for these.
  struct News {
    bool redraw = false;
    bool quit = false;  // 'q', or the terminal has gone
    int signal = 0;     // that is to end the program
  };
  News news();

 private:
  Terminal() = default;
  void enter();
  void leave();
  void read_keys(News& news) const;

  UniqueFd signals_;
  sigset_t blocked_before_{};
  bool keys_ = false;  // stdin is a terminal
  std::optional<termios> mode_before_;
  std::array<pollfd, 2> waited_for_{};
};

}  // namespace sockalarm::cli
