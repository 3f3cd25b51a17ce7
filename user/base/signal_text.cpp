// SPDX-License-Identifier: Apache-2.0
#include "base/signal_text.h"

#include <signal.h>

#include "base/text.h"

namespace sockalarm::detail {
namespace {

struct Name {
  int signal;
  std::string_view name;
};
// Where two names mean one signal the first is the one that is written.
constexpr Name kNames[] = {
    {SIGHUP, "HUP"},       {SIGINT, "INT"},   {SIGQUIT, "QUIT"}, {SIGILL, "ILL"},   {SIGTRAP, "TRAP"},
    {SIGABRT, "ABRT"},     {SIGBUS, "BUS"},   {SIGFPE, "FPE"},   {SIGKILL, "KILL"}, {SIGUSR1, "USR1"},
    {SIGSEGV, "SEGV"},     {SIGUSR2, "USR2"}, {SIGPIPE, "PIPE"}, {SIGALRM, "ALRM"}, {SIGTERM, "TERM"},
    {SIGCHLD, "CHLD"},     {SIGCONT, "CONT"}, {SIGSTOP, "STOP"}, {SIGTSTP, "TSTP"}, {SIGTTIN, "TTIN"},
    {SIGTTOU, "TTOU"},     {SIGURG, "URG"},   {SIGXCPU, "XCPU"}, {SIGXFSZ, "XFSZ"}, {SIGVTALRM, "VTALRM"},
    {SIGPROF, "PROF"},     {SIGSYS, "SYS"},
#ifdef SIGWINCH
    {SIGWINCH, "WINCH"},
#endif
#ifdef SIGIO
    {SIGIO, "IO"},
#endif
#ifdef SIGPOLL
    {SIGPOLL, "POLL"},
#endif
#ifdef SIGPWR
    {SIGPWR, "PWR"},
#endif
#ifdef SIGSTKFLT
    {SIGSTKFLT, "STKFLT"},
#endif
#ifdef SIGINFO
    {SIGINFO, "INFO"},
#endif
#ifdef SIGEMT
    {SIGEMT, "EMT"},
#endif
#ifdef SIGIOT
    {SIGIOT, "IOT"},
#endif
#ifdef SIGCLD
    {SIGCLD, "CLD"},
#endif
};

// ASCII only: std::toupper() would ask the locale.
std::string upper(std::string_view text) {
  std::string copy(text);
  for (char& c : copy)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return copy;
}

// Without a sign.
std::optional<int> plain_number(std::string_view text) {
  return text.starts_with('-') ? std::nullopt : parse_number<int>(text);
}

#ifdef SIGRTMIN
// Not constants: the C library takes the first few for itself.
bool is_realtime(int signal) { return signal >= SIGRTMIN && signal <= SIGRTMAX; }

// `rest` follows RTMIN or RTMAX: nothing, or the sign and a distance.
std::optional<int> parse_realtime(std::string_view rest, int base, char sign) {
  if (rest.empty()) return base;
  const auto distance = rest.front() == sign ? plain_number(rest.substr(1)) : std::nullopt;
  if (!distance || *distance > SIGRTMAX - SIGRTMIN) return std::nullopt;
  return sign == '+' ? base + *distance : base - *distance;
}
#endif

}  // namespace

std::string signal_name(int signal) {
  for (const Name& known : kNames)
    if (known.signal == signal) return std::string(known.name);
#ifdef SIGRTMIN
  if (is_realtime(signal)) return signal == SIGRTMIN ? "RTMIN" : "RTMIN+" + std::to_string(signal - SIGRTMIN);
#endif
  return {};
}

std::optional<int> parse_signal(std::string_view text) {
  if (const auto number = plain_number(text)) return number;
  const std::string upper_case = upper(text);
  std::string_view name = upper_case;
  if (name.starts_with("SIG")) name.remove_prefix(3);
  for (const Name& known : kNames)
    if (known.name == name) return known.signal;
#ifdef SIGRTMIN
  if (name.starts_with("RTMIN")) return parse_realtime(name.substr(5), SIGRTMIN, '+');
  if (name.starts_with("RTMAX")) return parse_realtime(name.substr(5), SIGRTMAX, '-');
#endif
  return std::nullopt;
}

int free_realtime_signal() noexcept {
#ifdef SIGRTMAX
  for (int number = SIGRTMAX; number >= SIGRTMIN; --number) {
    struct sigaction now{};
    if (::sigaction(number, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 &&
        now.sa_handler == SIG_DFL)
      return number;
  }
#endif
  return 0;
}

}  // namespace sockalarm::detail
