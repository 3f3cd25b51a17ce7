// SPDX-License-Identifier: Apache-2.0
#include "cli/run_plan.h"

#include <sockalarm/diagnostics.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/signal_text.h"
#include "base/text.h"
#include "cli/times.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

bool is_stream(const DescriptorInfo& info) {
  static constexpr std::string_view kKinds[] = {"tcp",         "mptcp",          "sctp",
                                                "unix-stream", "unix-seqpacket", "vsock"};
  return !info.listening && std::find(std::begin(kKinds), std::end(kKinds), info.kind) != std::end(kKinds) &&
         (info.peer ||
          info.state == "CLOSE");  // CLOSE: reset before we were started; the peer's name is forgotten
}

// Above stderr a socket may be anything, one that our parent forgot to close (socat does) as well as the
// client's. The environment must say that a connection was meant to be passed on.
bool is_passed_on_purpose(int fd) {
  constexpr int kFirst = 3;  // SD_LISTEN_FDS_START of sd_listen_fds(3)
  const auto number = [](const char* name) {
    const char* const value = std::getenv(name);
    return value != nullptr ? parse_number<int>(value).value_or(0) : 0;
  };
  if (number("LISTEN_PID") == ::getpid()) return fd >= kFirst && fd - kFirst < number("LISTEN_FDS");
  return std::getenv("GATEWAY_INTERFACE") != nullptr || std::getenv("REQUEST_METHOD") != nullptr;
}

// 0, else 1, as inetd and socat give it; else the only one that was passed on purpose.
Result<int> find_client() {
  const auto table = descriptor_table();
  if (!table) return fail(table.error());
  std::vector<int> passed;
  std::string found;
  for (const DescriptorInfo& info : *table) {
    found += "\n  " + to_string(info);
    if (!is_stream(info)) continue;
    if (info.fd <= STDOUT_FILENO) return info.fd;
    if (is_passed_on_purpose(info.fd)) passed.push_back(info.fd);
  }
  if (passed.size() == 1) return passed.front();
  return fail(usage(
      (passed.empty() ? "no client: neither descriptor 0 nor 1 is a connected stream socket"
                      : "several descriptors may be the client") +
      std::string("; pass the number of the client's socket with --fd N (socat: EXEC without pty and pipes; "
                  "stdin and stdout of a CGI program are usually pipes from the web server). There are:") +
      found));
}

Result<int> read_descriptor(const std::string& text) {
  const auto fd = parse_number<int>(text);
  if (fd && *fd >= 0) return *fd;
  return fail(usage("--fd " + sockalarm::quoted(text) +
                    " is not the number of a descriptor; expected 0 or more, such as 3 (sockalarm fds lists "
                    "those there are)"));
}

// Refuses what can never happen here: the command would run on without its client.
Result<Events> read_events(const RunOptions& options, std::chrono::nanoseconds timeout) {
  const auto on = parse_events(options.on);
  if (!on) return fail(on.error().with_context("--on"));
  const std::string given = "--on " + sockalarm::quoted(options.on) + ": ";
  if (on->empty())
    return fail(usage(given + "the client could never leave; expected at least one event, such as shut or " +
                      "reset,timeout (for a time limit alone: --on deadline --timeout 60s)"));
  if (on->contains(events::closed))
    return fail(usage(given +
                      "closed cannot happen, for sockalarm keeps the descriptor open; expected fin, " +
                      "reset, timeout, error, shut, eof, readable or urgent"));
  if (on->contains(events::deadline) && timeout.count() == 0)
    return fail(usage(given + "deadline cannot happen without a time limit; add --timeout 60s"));
  return *on;
}

// Empty: no signal, or one that the C library keeps for itself.
std::optional<int> read_signal(std::string_view text) {
  const auto signal = detail::parse_signal(text);
  return signal && !detail::signal_name(*signal).empty() ? signal : std::nullopt;
}

Result<Step> read_step(const Action& action) {
  const std::string text = to_string(action);
  Step step{action, std::nullopt, text.starts_with("run:")};
  constexpr std::string_view kSignal = "sig:";
  if (!text.starts_with(kSignal)) return step;
  const std::string name = text.substr(kSignal.size(), text.find(':', kSignal.size()) - kSignal.size());
  step.signal = read_signal(name);
  if (!step.signal) return fail(usage(sockalarm::quoted(name) + " is not a signal"));
  return step;
}

Result<std::vector<Step>> read_steps(const std::vector<std::string>& texts) {
  std::vector<Step> steps;
  for (const std::string& text : texts) {
    const auto chain = ActionChain::parse(text);
    if (!chain) return fail(chain.error().with_context("--then"));
    for (std::size_t i = 0; i < chain->size(); ++i) {
      if (to_string((*chain)[i]).starts_with("exec:"))
        return fail(usage("--then " + sockalarm::quoted(text) +
                          ": exec: would replace sockalarm, which then could neither end the command nor "
                          "report on it; use run: to start a program beside it"));
      auto step = read_step((*chain)[i]);
      if (!step) return fail(step.error().with_context("--then " + sockalarm::quoted(text)));
      steps.push_back(std::move(*step));
    }
  }
  return steps;
}

}  // namespace

Result<RunPlan> make_plan(const RunOptions& options) {
  const auto signal = read_signal(options.signal);
  if (!signal)
    return fail(usage("--signal " + sockalarm::quoted(options.signal) +
                      " is not a signal; expected a name such as TERM or a number, see kill -l"));
  const auto timeout = parse_time("--timeout", options.timeout),
             kill_after = parse_time("--kill-after", options.kill_after);
  if (!timeout) return fail(timeout.error());
  if (!kill_after) return fail(kill_after.error());
  const auto on = read_events(options, *timeout);
  if (!on) return fail(on.error());
  const auto source = parse_source(options.source);
  if (!source) return fail(source.error().with_context("--source"));
  auto then = read_steps(options.then);
  if (!then) return fail(then.error());
  const auto fd = options.fd ? read_descriptor(*options.fd) : find_client();
  if (!fd) return fail(fd.error());
  // For one socket, loading BPF programs (some 50 ms) would cost more than it gives.
  const auto chosen = *source == SourceKind::automatic ? SourceKind::epoll : *source;
  return RunPlan{*fd, *on, chosen, *signal, *timeout, *kill_after, std::move(*then)};
}

}  // namespace sockalarm::cli
