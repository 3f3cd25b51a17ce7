// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/record.h>
#include <sockalarm/result.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sockalarm {

// What the server knows of a request. Text may come from the client: control characters, quotes and
// backslashes are escaped, so that no line can be forged.
struct Exchange {
  std::string_view remote_host{};
  std::string_view user{};
  std::string_view request_line{};  // "GET /report HTTP/1.1"
  int status = 0;                   // 499 is nginx's for a client that left; 0: none was sent
  std::uint64_t bytes = 0;          // of the body
  std::string_view referer{};
  std::string_view user_agent{};
};

// The form of a line of text, in the notation of Apache's LogFormat:
//   %h host, %l -, %u user, %t time, %r request line, %s %>s status, %b bytes (- for 0), %B bytes, %D us,
//   %T s, %U path, %X X if the client left, else +, %{Referer}i, %{User-Agent}i, %%, and %{SIGPIPE}e, 1 or -;
// and of the request's record, - where there is nothing to tell:
//   %{aborted}x 1, %{cause}x fin, %{error}x errno, %{busy}x ms of work after the client left,
//   %{sounded}x limits that went off, query:2s,request:180s, %{failed}x their calls, %{shielded}x ms under
//   shields, %{held}x the longest ms that one held a stop back, %{limit}x of the request, %{override}x the
//   expression it is from, %{pokes}x, %{cleanups}x as run/failed.
// Immutable; any thread.
class LogFormat {
 public:
  static constexpr std::string_view kDefault =
      "%h %l %u %t \"%r\" %>s %b %D %X %{cause}x %{busy}x %{sounded}x %{shielded}x";

  // Errc::invalid_text shows the directive and what is known.
  [[nodiscard]] static Result<LogFormat> parse(std::string_view text = kDefault);

  // One line, without a newline.
  std::string line(const Record& record, const Exchange& exchange) const;

 private:
  struct Piece {
    std::string text;  // literal, if `write` is null
    void (*write)(std::string& out, const Record& record, const Exchange& exchange) = nullptr;
  };
  std::vector<Piece> pieces_;
};

// The same facts as one JSON object on one line, without a newline. Times in seconds, "began" by RFC 3339 in
// UTC; what is not UTF-8 is replaced. Facts that do not apply are absent.
std::string to_json(const Record& record, const Exchange& exchange);

}  // namespace sockalarm
