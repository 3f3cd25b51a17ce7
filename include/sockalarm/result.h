// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <system_error>
#include <tl/expected.hpp>
#include <utility>

namespace sockalarm {

// Conditions a caller may want to handle. Whatever the operating system says is passed on unchanged as an
// errno in std::system_category().
enum class Errc {
  not_a_socket = 1,  // the descriptor is open, but a file, a pipe, ...
  not_a_stream,      // a datagram or raw socket: it has no peer that could leave
  not_connected,     // never connected, disconnected, or listening
  invalid_options,   // a value in Options out of its range
  invalid_events,    // an event name or mask that means nothing, or not on this socket
  invalid_action,    // an action that could never run (signal 99, a program that is not there, ...)
  invalid_text,      // text that does not parse
  unsupported,       // this build or this kernel cannot do it
  inert_after_fork,  // the object was inherited by fork(); the child must create its own Watcher
  stopped,           // the Watcher was destroyed
  invalid_policy,    // a value in a Policy out of its range, or a policy file that does not parse
  invalid_use,       // a Request used in a way that it cannot be
  limit_passed,      // the time limit of a call
  request_limit_passed,
  peer_gone,          // the client left
  queue_full,         // FdChannel: as much as is allowed waits to be sent; again after a `sent`
  channel_ended,      // FdChannel: it is over, on_end has said or will say why
  malformed_frame,    // FdChannel: the peer does not speak its protocol, or stopped amid a message
  message_too_large,  // FdChannel: a message beyond the limits
  descriptors_lost,   // FdChannel, only off Linux: another thread took the room kept for a descriptor
};

const std::error_category& error_category() noexcept;
std::error_code make_error_code(Errc code) noexcept;

// Why something failed: a code to branch on and a sentence for people, outermost context first.
// A value; any thread.
class Error {
 public:
  Error(std::error_code code, std::string message) : code_(code), message_(std::move(message)) {}
  Error(Errc code, std::string message) : Error(make_error_code(code), std::move(message)) {}

  // errno `number`, said of `what`: "what: No such file or directory".
  static Error from_errno(int number, std::string what);

  std::error_code code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }
  Error with_context(const std::string& context) const { return Error(code_, context + ": " + message_); }

 private:
  std::error_code code_;
  std::string message_;
};

// A value or an Error. Nothing throws across this library's boundary; `value()` of an empty Result throws
// tl::bad_expected_access in the caller.
template <class T>
using Result = tl::expected<T, Error>;

inline tl::unexpected<Error> fail(Error error) { return tl::unexpected<Error>(std::move(error)); }

}  // namespace sockalarm

template <>
struct std::is_error_code_enum<sockalarm::Errc> : std::true_type {};
