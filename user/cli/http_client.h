// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>
#include <sockalarm/result.h>

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace sockalarm::cli {

// Where the observer answers: on a Unix socket or, if `url` is not empty, there.
struct HttpTarget {
  std::string socket = "/run/sockalarm/observe.sock";
  std::string url;
};

// One GET at a time, by whoever owns it: what comes is waited for beside other descriptors, so no second
// thread is needed. Errors: Errc::unsupported in a build without libcurl.
class HttpClient {
 public:
  static Result<HttpClient> make(const HttpTarget& target);
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) noexcept;
  ~HttpClient();

  // Asks for a path such as "/v1/totals". The answer must have ended within `patience`, if that is given.
  // What is still under way is broken off.
  void start(const std::string& path, std::optional<std::chrono::milliseconds> patience);
  // Until something came of the answer, or one of `others` is readable (its revents is POLLIN then), or
  // `longest` is over, or for no reason.
  void wait(std::span<pollfd> others, std::optional<std::chrono::milliseconds> longest);
  bool busy() const;         // the answer has not ended
  bool is_answered() const;  // with status 200; more may come

  std::string take_data();                 // that came since, of an answer with status 200
  std::optional<Result<void>> take_end();  // how the answer ended, once

 private:
  struct Transfer;
  explicit HttpClient(std::unique_ptr<Transfer> transfer);
  std::unique_ptr<Transfer> transfer_;
};

}  // namespace sockalarm::cli
