// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/access_log.h>
#include <sockalarm/request.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "suite/suite.h"

namespace sockalarm::test {

// A watched connection and Requests of one policy.
class Scene {
 public:
  Scene(Watcher& watcher, Policy policy = {}, Connection made = tcp_pair())
      : connection(std::move(made)),
        watch(watcher.watch(connection.ours.get()).value()),
        requests(Requests::create(watcher, std::move(policy)).value()) {}

  Request begin(std::string_view path = "/") { return requests.begin(watch, path).value(); }
  void leave() { connection.peer.reset(); }
  // The watch state is written before anybody is told.
  bool sees_it() {
    return eventually([&] { return watch.peer_gone(); });
  }

  Connection connection;
  Watch watch;
  Requests requests;
};

// Blocks until its token is stopped; the thing to do for a handler that does not wait in system calls.
inline bool until_stopped(const std::stop_token& token) {
  return eventually([&] { return token.stop_requested(); });
}

// A read that nothing comes for: how it ended.
class SilentPipe {
 public:
  SilentPipe() {
    int ends[2];
    require(::pipe(ends) == 0, "pipe");
    out_ = UniqueFd(ends[0]);
    in_ = UniqueFd(ends[1]);
  }
  int read() const {
    char byte = 0;
    return ::read(out_.get(), &byte, 1) < 0 ? errno : 0;
  }
  int fd() const { return out_.get(); }
  void write() const { require(::write(in_.get(), "x", 1) == 1, "write"); }

 private:
  UniqueFd out_, in_;
};

template <class T>
Errc code_of(const Result<T>& result) {
  return result ? Errc{} : static_cast<Errc>(result.error().code().value());
}

}  // namespace sockalarm::test
