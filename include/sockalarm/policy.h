// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/event.h>
#include <sockalarm/record.h>
#include <sockalarm/result.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>
#include <vector>

namespace sockalarm {

namespace detail {

// Where a call keeps what its function returned, without its type.
struct ValueSlot {
  void* place = nullptr;  // std::optional<T>
  const std::type_info* type = nullptr;

  template <class T>
  std::optional<T>* as() const noexcept {
    return type != nullptr && *type == typeid(T) ? static_cast<std::optional<T>*>(place) : nullptr;
  }
};

}  // namespace detail

// What a policy's handler is told of a limit that went off, and what it may answer. Lives for that call only.
class Sounding {
 public:
  Sounding(const Sounded& sounded, detail::ValueSlot slot) noexcept : what(sounded), slot_(slot) {}

  const Sounded& what;
  bool local() const noexcept { return what.cause == StopCause::call_limit; }  // else the request's
  // True, and the call answers the error. Set it to false and the call answers its value, or after the
  // request's limit the request goes on, without one.
  bool fatal = true;

  // What the call's function returned, if that is a T; else null. Always null for the request's limit.
  template <class T>
  T* value() const noexcept {
    std::optional<T>* const place = slot_.template as<T>();
    return place != nullptr && *place ? &**place : nullptr;
  }
  // The call shall answer this; counts if `fatal` is set to false. False: its function does not return a T.
  template <class T>
  bool replace(T other) const {
    std::optional<T>* const place = slot_.template as<T>();
    if (place != nullptr) place->emplace(std::move(other));
    return place != nullptr;
  }

 private:
  detail::ValueSlot slot_;
};

// Another limit for the requests whose path an expression matches somewhere ("^/ajax/").
struct PathLimit {
  std::string path;  // RE2 syntax: linear time and bounded memory, since paths come from clients. It sees
                     // bytes, and '.' is any of them
  std::chrono::nanoseconds limit{0};
};

// What requests may take, and what happens when they take more. A value; Requests::create() checks it.
struct Policy {
  std::chrono::nanoseconds limit = std::chrono::seconds(180);  // of the whole request; 0: none
  std::chrono::nanoseconds call_limit{0};                      // of calls without one of their own; 0: none
  bool forward = false;                // Request::forward() has that limit too; needs call_limit
  std::vector<PathLimit> overrides{};  // the first that matches replaces `limit`
  Events on = events::shut;            // what of it counts as a client that left; FIN alone is not certain

  // Called for each limit that went off, once, in the request's thread: after the function of the call has
  // returned or thrown, for the request's limit after the outermost one, before the next one, or at the end.
  // What it throws passes through call().
  std::function<void(Sounding&)> handler{};
  // Called at the end of each request, after the cleanups, for the log. What it throws is told to
  // Options::log.
  std::function<void(const Record&)> on_end{};
};

// Errc::invalid_policy says which value, and what was expected.
[[nodiscard]] Result<void> check_policy(const Policy& policy);

// From TOML: limit, call_limit (seconds, also with a fraction, or text such as "250ms"), forward, on
// ("reset,timeout"), and any number of [[override]] with path and limit. The handlers are the program's.
// Errc::invalid_policy names file, line and key: "policy.toml:3: limit: ...". `file` is for these messages.
[[nodiscard]] Result<Policy> parse_policy(std::string_view toml, std::string_view file = "policy");
// The same from a file. errno if it cannot be read.
[[nodiscard]] Result<Policy> load_policy(const std::string& path);

}  // namespace sockalarm
