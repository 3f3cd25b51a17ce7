// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include "c_abi/entry.h"

namespace sockalarm::c_abi {
namespace {

// Not a std::string: it must hold what is said of a failed allocation, and a thread may end after the library
// was asked to unload.
thread_local std::array<char, 1024> last_error{};

constexpr int kOwnCodes = 10'000;  // below: errno, which no system has beyond 4095

constexpr int code_of(Errc code) noexcept { return -(kOwnCodes + static_cast<int>(code)); }
static_assert(code_of(Errc::not_a_socket) == SOCKALARM_E_NOT_A_SOCKET &&
              code_of(Errc::not_a_stream) == SOCKALARM_E_NOT_A_STREAM &&
              code_of(Errc::not_connected) == SOCKALARM_E_NOT_CONNECTED &&
              code_of(Errc::invalid_options) == SOCKALARM_E_INVALID_OPTIONS &&
              code_of(Errc::invalid_events) == SOCKALARM_E_INVALID_EVENTS &&
              code_of(Errc::invalid_action) == SOCKALARM_E_INVALID_ACTION &&
              code_of(Errc::invalid_text) == SOCKALARM_E_INVALID_TEXT &&
              code_of(Errc::unsupported) == SOCKALARM_E_UNSUPPORTED &&
              code_of(Errc::inert_after_fork) == SOCKALARM_E_INERT_AFTER_FORK &&
              code_of(Errc::stopped) == SOCKALARM_E_STOPPED &&
              code_of(Errc::invalid_policy) == SOCKALARM_E_INVALID_POLICY &&
              code_of(Errc::invalid_use) == SOCKALARM_E_INVALID_USE &&
              code_of(Errc::limit_passed) == SOCKALARM_E_LIMIT_PASSED &&
              code_of(Errc::request_limit_passed) == SOCKALARM_E_REQUEST_LIMIT_PASSED &&
              code_of(Errc::peer_gone) == SOCKALARM_E_PEER_GONE);

int code_of(const std::error_code& code) noexcept {
  if (code.category() == error_category()) return code_of(static_cast<Errc>(code.value()));
  if (code.category() == std::system_category() || code.category() == std::generic_category())
    return code.value() > 0 ? -code.value() : SOCKALARM_E_INTERNAL;
  return SOCKALARM_E_INTERNAL;
}

}  // namespace

int fail_with(int code, std::string_view text) noexcept {
  copy_text(text, last_error.data(), last_error.size());
  return code;
}

int fail_with(const std::error_code& code, std::string_view text) noexcept {
  return fail_with(code_of(code), text);
}

int fail_with(const Error& error) noexcept { return fail_with(code_of(error.code()), error.message()); }

int bad_argument(const char* function, std::string_view what) noexcept {
  const int length = copy_text(function, last_error.data(), last_error.size());
  const size_t used = std::min(static_cast<size_t>(length), last_error.size() - 1);
  const size_t colon =
      used + static_cast<size_t>(copy_text("(): ", &last_error[used], last_error.size() - used));
  if (colon < last_error.size()) copy_text(what, &last_error[colon], last_error.size() - colon);
  return -EINVAL;
}

}  // namespace sockalarm::c_abi

const char* sockalarm_error_text(void) { return sockalarm::c_abi::last_error.data(); }
const char* sockalarm_version(void) { return SOCKALARM_VERSION; }
