// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/result.h>

#include <cstring>

namespace sockalarm {
namespace {

class Category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "sockalarm"; }
  std::string message(int value) const override {
    switch (static_cast<Errc>(value)) {
      case Errc::not_a_socket:
        return "not a socket";
      case Errc::not_a_stream:
        return "not a stream socket";
      case Errc::not_connected:
        return "not connected";
      case Errc::invalid_options:
        return "option out of range";
      case Errc::invalid_events:
        return "invalid events";
      case Errc::invalid_action:
        return "invalid action";
      case Errc::invalid_text:
        return "invalid text";
      case Errc::unsupported:
        return "not supported";
      case Errc::inert_after_fork:
        return "inherited by fork(), therefore inert";
      case Errc::stopped:
        return "the watcher is gone";
      case Errc::invalid_policy:
        return "invalid policy";
      case Errc::invalid_use:
        return "invalid use";
      case Errc::limit_passed:
        return "time limit of a call passed";
      case Errc::request_limit_passed:
        return "time limit of the request passed";
      case Errc::peer_gone:
        return "the peer has gone";
      case Errc::queue_full:
        return "the send queue is full";
      case Errc::channel_ended:
        return "the channel is over";
      case Errc::malformed_frame:
        return "malformed frame";
      case Errc::message_too_large:
        return "message too large";
      case Errc::descriptors_lost:
        return "descriptors were lost";
    }
    return "unknown error " + std::to_string(value);
  }
};

// strerror_r(3) is two functions: POSIX' fills the buffer and returns an int, GNU's returns the text.
[[maybe_unused]] const char* errno_text(int result, const char* buffer) {
  return result == 0 ? buffer : nullptr;
}
[[maybe_unused]] const char* errno_text(const char* result, const char*) { return result; }

}  // namespace

const std::error_category& error_category() noexcept {
  static const Category category;
  return category;
}

std::error_code make_error_code(Errc code) noexcept { return {static_cast<int>(code), error_category()}; }

Error Error::from_errno(int number, std::string what) {
  // Not system_category().message(): before GCC 13 that is strerror(3), whose buffer all threads share.
  char buffer[256] = "";
  const char* const text = errno_text(::strerror_r(number, buffer, sizeof buffer), buffer);
  what += ": ";
  what += text != nullptr && *text != '\0' ? std::string(text) : "errno " + std::to_string(number);
  return {std::error_code(number, std::system_category()), std::move(what)};
}

}  // namespace sockalarm
