// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <httplib.h>
#include <poll.h>
#include <sockalarm/sockalarm.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "common.h"

inline int listen_on_path(const std::string& path) {
  const int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) give_up("the path is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 64) != 0)
    give_up("cannot listen on " + path);
  say("listening on " + path);
  return listener;
}

// An accepted connection, as httplib reads and writes it. The server has set SO_RCVTIMEO and SO_SNDTIMEO.
class ConnectionStream final : public httplib::Stream {
 public:
  explicit ConnectionStream(int fd) : fd_(fd) {}

  bool is_readable() const override { return wait_for(POLLIN, 0); }
  bool is_writable() const override { return wait_for(POLLOUT, 0); }
  bool wait_for(short what, int milliseconds) const {
    pollfd entry{fd_, what, 0};
    return ::poll(&entry, 1, milliseconds) == 1;
  }
  ssize_t read(char* bytes, size_t size) override { return ::recv(fd_, bytes, size, 0); }
  ssize_t write(const char* bytes, size_t size) override { return ::send(fd_, bytes, size, MSG_NOSIGNAL); }
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  int socket() const override { return fd_; }

 private:
  const int fd_;
};

// httplib does not show a handler its connection. What it does let a server override is what happens to an
// accepted socket, on the thread that will call the handler: there the connection is watched, and stands in a
// variable of the thread.
class WatchingHttpServer : public httplib::Server {
 public:
  // Each request blocks its thread, so there are as many as requests at a time.
  explicit WatchingHttpServer(const sockalarm::Watcher& watcher, std::size_t threads = 64)
      : watcher_(watcher) {
    new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
  }

  // Serves until stop(), on a listening socket of any family.
  bool serve(int listener) {
    svr_sock_ = listener;
    return listen_after_bind();
  }

  // Only in a handler: the client of the request that it handles.
  static const sockalarm::Watch& client() { return *client_; }

 private:
  bool process_and_close_socket(socket_t fd) override {
    bool fine = false;
    if (const auto watch = watcher_.watch(fd)) {  // once for all requests of the connection
      client_ = &*watch;
      fine = serve_requests(fd);
    } else {
      say(watch.error().message());
    }
    ::shutdown(fd, SHUT_RDWR);
    ::close(fd);
    return fine;
  }

  bool serve_requests(int fd) {
    ConnectionStream stream(fd);
    const int patience = static_cast<int>(keep_alive_timeout_sec_) * 1000;
    bool fine = true, closed = false;
    for (auto left = keep_alive_max_count_; left > 0 && fine && !closed; --left) {
      if (!stream.wait_for(POLLIN, patience)) break;
      fine = process_request(stream, left == 1, closed, nullptr);
    }
    return fine;
  }

  const sockalarm::Watcher& watcher_;
  inline static thread_local const sockalarm::Watch* client_ = nullptr;
};
