// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sockalarm/fd_channel.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness/descriptors.h"

// What the tests of channels need: an event loop, children, numbered files.
namespace sockalarm::test {

// Serves the channels until `done`, as an event loop would. False after `patience`, a guard against hanging.
inline bool serve(const std::vector<FdChannel*>& channels, const std::function<bool()>& done,
                  std::chrono::milliseconds patience = std::chrono::seconds(60)) {
  const auto until = std::chrono::steady_clock::now() + patience;
  while (!done()) {
    std::vector<pollfd> waited;
    int timeout = 1000;
    for (const FdChannel* channel : channels) {
      waited.push_back({channel->poll_fd(), channel->poll_events(), 0});
      if (const auto wish = channel->poll_timeout())
        timeout = std::min(timeout, static_cast<int>(wish->count()));
    }
    if (std::chrono::steady_clock::now() > until) return false;
    ::poll(waited.data(), static_cast<nfds_t>(waited.size()), timeout);
    for (FdChannel* channel : channels) channel->process();
  }
  return true;
}

inline std::string text_of(const FdMessage& message) {
  return {reinterpret_cast<const char*>(message.payload.data()), message.payload.size()};
}

inline FdMessage message_of(std::string_view text, std::vector<UniqueFd> fds = {}) {
  const auto bytes = bytes_of(text);
  return {{bytes.begin(), bytes.end()}, std::move(fds)};
}

// A file that says its number: so that a descriptor can be told from its brothers.
inline UniqueFd numbered_file(int number) {
  UniqueFd fd = make_file();
  require(::pwrite(fd.get(), &number, sizeof number, 0) == sizeof number, "pwrite");
  return fd;
}

inline int number_of(const UniqueFd& fd) {
  int number = -1;
  return ::pread(fd.get(), &number, sizeof number, 0) == sizeof number ? number : -1;
}

// Runs `body` in a forked child, which exits with what it returns (gtest's assertions do not work there).
class Child {
 public:
  explicit Child(const std::function<int()>& body) : pid_(::fork()) {
    if (pid_ == 0) ::_exit(body());
  }
  ~Child() {
    if (pid_ > 0) wait();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  pid_t pid() const { return pid_; }
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_;
};

// How a channel ended.
struct End {
  int times = 0;
  std::optional<Error> why;
  FdChannelOptions options() {
    FdChannelOptions made;
    made.on_end = [this](const Error* error) {
      ++times;
      if (error != nullptr) why = *error;
    };
    return made;
  }
};

// A channel and a plain socket that plays its peer.
struct Against {
  UniqueFd peer;
  End end;
  std::optional<FdChannel> channel;
  explicit Against(std::function<void(FdChannelOptions&)> change = {}) {
    Connection connection = unix_pair();
    peer = std::move(connection.peer);
    FdChannelOptions options = end.options();
    if (change) change(options);
    channel.emplace(FdChannel::adopt(std::move(connection.ours), std::move(options)).value());
  }
  bool ends() {
    return serve({&*channel}, [this] { return end.times > 0; });
  }
};

struct Path {
  std::string text = "/tmp/sockalarm-channel-" + std::to_string(::getpid());
  ~Path() { ::unlink(text.c_str()); }
};

}  // namespace sockalarm::test
