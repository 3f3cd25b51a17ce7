// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace sockalarm::observe {

// An answer that has no end. One thread, the server's.
class WebStream {
 public:
  WebStream() = default;
  WebStream(const WebStream&) = delete;
  WebStream& operator=(const WebStream&) = delete;
  virtual ~WebStream() = default;  // the client has left, or the server ends

  // How many bytes were put there; 0: nothing for now, WebServer::wake() tells when there is more.
  virtual std::size_t read(char* to, std::size_t size) = 0;
  virtual bool has_more() const = 0;
};

// Answers GET and HEAD by HTTP/1.1, on a thread of its own that waits for no client: each connection has one
// request, some seconds for all of it, and there are at most `kConnections` on each address. One more, and
// the oldest goes that has not sent its request yet, or else the oldest that has not taken its answer:
// whoever asks and reads is answered, however many connections others hold. Streams stay, and so many that
// nothing else has room make clients wait in the backlog.
class WebServer {
 public:
  static constexpr unsigned kConnections = 64;

  struct Answer {
    int status = 200;
    std::string type = "text/plain; charset=utf-8";
    std::string body;
    std::string policy = "default-src 'none'; frame-ancestors 'none'";  // Content-Security-Policy
  };
  struct Routes {
    std::map<std::string, std::function<Answer()>> answers;  // by path
    // Null: no more than there are, 503. Only on addresses that are `trusted`.
    std::map<std::string, std::function<std::unique_ptr<WebStream>()>> streams;
  };
  struct Address {
    UniqueFd listener;  // of stream sockets, non-blocking
    bool trusted;
  };
  struct Options {
    std::chrono::milliseconds request{2'000};  // to send it
    std::chrono::milliseconds answer{10'000};  // to take it
  };

  // Errors: errno, of what could not be made. What the routes throw is told of by 500.
  static Result<std::unique_ptr<WebServer>> start(std::vector<Address> addresses, Routes routes,
                                                  Options options);
  static Result<std::unique_ptr<WebServer>> start(std::vector<Address> addresses, Routes routes) {
    return start(std::move(addresses), std::move(routes), Options());
  }
  WebServer(const WebServer&) = delete;
  WebServer& operator=(const WebServer&) = delete;
  ~WebServer();  // breaks off what is under way

  // A stream has more. Any thread; cheap if it was called just before.
  void wake() noexcept;

 private:
  struct Server;
  explicit WebServer(std::unique_ptr<Server> server);
  std::unique_ptr<Server> server_;
};

// "127.0.0.1:9465", "[::]:9465"; port 0: any. Errors name what was given and what was expected.
Result<UniqueFd> listen_at_tcp(const std::string& address);

}  // namespace sockalarm::observe
