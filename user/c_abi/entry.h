// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/sockalarm_c.h>
#include <sockalarm/watcher.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string_view>
#include <system_error>

// How every function of the C library begins and ends: nothing thrown leaves, and what failed is told.
namespace sockalarm::c_abi {

// Keeps the text for sockalarm_error_text(); answers `code`. Allocates nothing, so it serves ENOMEM, too.
int fail_with(int code, std::string_view text) noexcept;
int fail_with(const std::error_code& code, std::string_view text) noexcept;
int fail_with(const Error& error) noexcept;
// -EINVAL: "function(): what".
int bad_argument(const char* function, std::string_view what) noexcept;

template <class Body>
int guarded(const char* function, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (const std::bad_alloc&) {
    return fail_with(-ENOMEM, "out of memory");
  } catch (const std::system_error& error) {
    return fail_with(error.code(), error.what());
  } catch (const std::exception& error) {
    return fail_with(SOCKALARM_E_INTERNAL, error.what());
  } catch (...) {
    return fail_with(SOCKALARM_E_INTERNAL, function);
  }
}

// The same for functions that make a handle: `make` answers a Result of what the handle's only member is made
// from.
template <class Handle, class Make>
int make_handle(const char* function, Handle** out, Make&& make) noexcept {
  if (out == nullptr) return bad_argument(function, "`out` is NULL; give it the address of a handle");
  *out = nullptr;
  return guarded(function, [&] {
    auto made = std::forward<Make>(make)();
    if (!made) return fail_with(made.error());
    *out = new Handle{std::move(*made)};  // NOLINT(bugprone-unhandled-exception-at-new): guarded() handles it
    return 0;
  });
}

inline int copy_text(std::string_view text, char* buffer, size_t size) noexcept {
  if (buffer != nullptr && size > 0) {
    const size_t copied = text.copy(buffer, size - 1);
    buffer[copied] = '\0';
  }
  return static_cast<int>(text.size());
}

inline sockalarm_event to_c(const Event& event) noexcept {
  return {.what = event.what.bits(),
          .error = event.error,
          .at = std::chrono::nanoseconds(event.at.time_since_epoch()).count(),
          .cookie = event.cookie};
}

}  // namespace sockalarm::c_abi

// Checks one argument of the function around it.
#define SOCKALARM_C_NEEDS(argument) \
  if ((argument) == nullptr) return ::sockalarm::c_abi::bad_argument(__func__, "`" #argument "` is NULL")
