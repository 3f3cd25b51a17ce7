// SPDX-License-Identifier: Apache-2.0
#include "core/action_text.h"

#include <sockalarm/action.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/signal_text.h"
#include "base/text.h"
#include "core/action_impl.h"
#include "core/shell_words.h"

// The text form of actions. Actions are what the factory functions make of the arguments, so what is invalid
// is decided there; here only what does not read.

namespace sockalarm {
namespace detail {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
struct Unit {
  std::string_view name;
  std::uint64_t nanoseconds;
};
// "" and the last four are timeout(1)'s.
constexpr Unit kUnits[] = {
    {"ns", 1},      {"us", 1'000},       {"ms", 1'000'000},     {"", kSecond},
    {"s", kSecond}, {"m", 60 * kSecond}, {"h", 3600 * kSecond}, {"d", 86'400 * kSecond}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

Error misread(std::string message) { return {Errc::invalid_text, std::move(message)}; }

using Actions = std::vector<Action>;

Result<int> read_signal(std::string_view text) {
  if (const auto signal = parse_signal(text)) return *signal;
  return fail(misread(quoted(text) + " is not a signal"));
}

// All but run and exec take one word.
Result<std::string> one_word(std::string_view arguments) {
  auto words = split_words(arguments);
  if (!words) return fail(words.error());
  if (words->size() != 1)
    return fail(misread(words->empty() ? "nothing follows the ':'" : "more than one word"));
  return std::move(words->front());
}

Result<Actions> build_signal(std::string_view arguments) {
  auto word = one_word(arguments);
  if (!word) return fail(word.error());
  std::string_view name = *word;
  auto target = SignalTarget::arming_thread;
  if (const auto colon = name.find(':'); colon != std::string_view::npos) {
    if (name.substr(colon + 1) != "process")
      return fail(misread(quoted(name.substr(colon + 1)) + " is not 'process'"));
    target = SignalTarget::process;
    name = name.substr(0, colon);
  }
  const auto signal = read_signal(name);
  if (!signal) return fail(signal.error());
  return Actions{send_signal(*signal, target)};
}

Result<Actions> build_kill(std::string_view arguments) {
  auto word = one_word(arguments);
  if (!word) return fail(word.error());
  const std::string_view all = *word;
  const auto colon = all.find(':');
  if (colon == std::string_view::npos) return fail(misread("the process id is missing"));
  const auto signal = read_signal(all.substr(0, colon));
  if (!signal) return fail(signal.error());
  const auto pid = parse_number<pid_t>(all.substr(colon + 1));
  if (!pid) return fail(misread(quoted(all.substr(colon + 1)) + " is not a process id"));
  return Actions{kill_process(*signal, *pid)};
}

template <Action (*by_fd)(int), Action (*by_peer)(SocketAddress)>
Result<Actions> build_for_targets(std::string_view arguments) {
  const auto targets = split_unquoted(arguments, ',');
  if (!targets) return fail(targets.error());
  Actions actions;
  for (const std::string_view target : *targets) {
    const auto word = one_word(target);
    if (!word)
      return fail(target.find_first_not_of(' ') == target.npos ? misread("a target is missing")
                                                               : word.error());
    if (const auto fd = parse_number<int>(*word)) {
      actions.push_back(by_fd(*fd));
      continue;
    }
    auto peer = SocketAddress::parse(*word);
    if (!peer) return fail(peer.error().with_context(quoted(*word) + " is no descriptor number either"));
    actions.push_back(by_peer(*peer));
  }
  return actions;
}

template <Action (*start)(std::vector<std::string>)>
Result<Actions> build_program(std::string_view arguments) {
  auto words = split_words(arguments);
  if (!words) return fail(words.error());
  return Actions{start(std::move(*words))};
}

Result<Actions> build_sleep(std::string_view arguments) {
  const auto word = one_word(arguments);
  if (!word) return fail(word.error());
  const auto duration = parse_duration(*word);
  if (!duration) return fail(duration.error());
  return Actions{sleep_for(*duration)};
}

Result<Actions> build_notify(std::string_view arguments) {
  const auto word = one_word(arguments);
  if (!word) return fail(word.error());
  const auto fd = parse_number<int>(*word);
  if (!fd) return fail(misread(quoted(*word) + " is not a descriptor number"));
  return Actions{notify(*fd)};
}

// Not in this build's language, but it stands in to_string().
Result<Actions> build_code(std::string_view) { return fail(misread("code cannot be written as text")); }

struct Verb {
  std::string_view name;
  std::string_view form;  // what errors say was expected
  Result<Actions> (*build)(std::string_view arguments);
};
constexpr std::string_view kTarget =
    "a descriptor of a connected socket (7) or its peer's address (127.0.0.1:3306)";
constexpr Verb kVerbs[] = {
    {"sig", "sig:ALRM or sig:ALRM:process", build_signal},
    {"kill", "kill:TERM:1234, signal first", build_kill},
    {"close", "an open descriptor (7) or the address of a peer (127.0.0.1:3306)",
     build_for_targets<close_fd, close_peer>},
    {"shut_r", kTarget, build_for_targets<shutdown_read, shutdown_read>},
    {"shut_w", kTarget, build_for_targets<shutdown_write, shutdown_write>},
    {"shut_rw", kTarget, build_for_targets<shutdown_both, shutdown_both>},
    {"run", "a program and its arguments, quoted as for a shell: run:mysql -e 'kill 42'", build_program<run>},
    {"exec", "a program and its arguments, quoted as for a shell: exec:/usr/bin/env", build_program<exec>},
    {"sleep", "sleep:2s, 250ms, 10us, 5ns, 1m, 3h, 1d or 1.5 (seconds), up to 100 years", build_sleep},
    {"notify", "the number of an open eventfd: notify:9", build_notify},
    {"call", "an action made in the program", build_code},
    {"call_blocking", "an action made in the program", build_code},
    {"stop", "an action made in the program", build_code},
};

Error unknown_verb(std::string_view text) {
  std::string message =
      "action " + quoted(text) + " does not begin with the name of an action; expected one of";
  for (const Verb& verb : kVerbs)
    if (verb.build != build_code) message.append(" ").append(verb.name).append(":");
  return misread(std::move(message));
}

constexpr std::string_view kSpaces = " \t\r\n";

// What stands between two ';'. At least one action; several where several targets are named.
Result<Actions> parse_step(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
  const std::string_view shown = text.substr(0, text.find_last_not_of(kSpaces) + 1);
  const auto colon = shown.find(':');
  const std::string_view name = shown.substr(0, colon);
  for (const Verb& verb : kVerbs) {
    // Code has no arguments, so its name stands alone.
    if (name != verb.name || (colon == shown.npos && verb.build != build_code)) continue;
    const auto explain = [&](const Error& error) {
      std::string message = "action " + quoted(shown) + ": " + error.message();
      if (error.code() != Errc::invalid_action) message.append("; expected ").append(verb.form);
      return fail(Error(error.code(), std::move(message)));
    };
    // From the untrimmed text: the last space may be an escaped one.
    auto actions = verb.build(colon == shown.npos ? std::string_view{} : text.substr(colon + 1));
    if (!actions) return explain(actions.error());
    for (const Action& action : *actions)
      if (action.error() != nullptr) return explain(*action.error());
    return actions;
  }
  return fail(unknown_verb(shown));
}

}  // namespace

Result<std::chrono::nanoseconds> parse_duration(std::string_view text) {
  constexpr auto kLimit = static_cast<std::uint64_t>(kLongestSleep.count());
  const Error error = misread(quoted(text) + " is not a time");
  std::uint64_t whole = 0, fraction = 0, weight = kSecond;  // the fraction is counted in billionths
  std::size_t at = 0, digits = 0;
  for (; at < text.size() && is_digit(text[at]); ++at, ++digits) {
    if (whole > kLimit / 10) return fail(misread(quoted(text) + " is too long"));  // before it can overflow
    whole = whole * 10 + static_cast<std::uint64_t>(text[at] - '0');
  }
  if (at < text.size() && text[at] == '.')
    for (++at; at < text.size() && is_digit(text[at]); ++at, ++digits) {
      weight /= 10;
      fraction += weight * static_cast<std::uint64_t>(text[at] - '0');
    }
  if (digits == 0) return fail(error);
  for (const Unit& unit : kUnits) {
    if (unit.name != text.substr(at)) continue;
    if (whole > kLimit / unit.nanoseconds) return fail(misread(quoted(text) + " is too long"));
    fraction = unit.nanoseconds >= kSecond ? fraction * (unit.nanoseconds / kSecond)
                                           : fraction / (kSecond / unit.nanoseconds);
    return std::chrono::nanoseconds(static_cast<std::int64_t>(whole * unit.nanoseconds + fraction));
  }
  return fail(error);
}

std::string duration_text(std::chrono::nanoseconds duration) {
  for (const std::string_view name : {"s", "ms", "us"})
    for (const Unit& unit : kUnits) {
      const auto length = static_cast<std::int64_t>(unit.nanoseconds);
      if (unit.name == name && duration.count() % length == 0)
        return std::to_string(duration.count() / length) + std::string(name);
    }
  return std::to_string(duration.count()) + "ns";
}

}  // namespace detail

std::string to_string(const Action& action) { return action.impl().text(); }

std::string to_string(const ActionChain& chain) {
  std::string text;
  for (std::size_t i = 0; i < chain.size(); ++i) text += (i == 0 ? "" : "; ") + to_string(chain[i]);
  return text;
}

Result<Action> parse_action(std::string_view text) {
  const auto steps = detail::split_unquoted(text, ';');
  if (!steps) return fail(steps.error());
  if (steps->size() > 1)
    return fail(detail::misread("'" + std::string(text) +
                                "' is more than one action; expected one, with every ';' in quotes"));
  auto actions = detail::parse_step(text);
  if (!actions) return fail(actions.error());
  if (actions->size() > 1)
    return fail(detail::misread("action '" + std::string(text) + "' names several targets; expected one"));
  return std::move(actions->front());
}

Result<ActionChain> ActionChain::parse(std::string_view text) {
  auto steps = detail::split_unquoted(text, ';');
  if (!steps) return fail(steps.error());
  const auto blank = [](std::string_view step) {
    return step.find_first_not_of(detail::kSpaces) == step.npos;
  };
  if (steps->size() > 1 && blank(steps->back())) steps->pop_back();  // a ';' at the end
  std::vector<Action> chain;
  for (const std::string_view step : *steps) {
    if (blank(step)) {
      const auto position = static_cast<std::size_t>(step.data() - text.data()) + 1;
      return fail(detail::misread("an action is missing at character " + std::to_string(position) + " of '" +
                                  std::string(text) +
                                  "'; expected actions separated by ';', such as sig:ALRM; sleep:2s"));
    }
    auto actions = detail::parse_step(step);
    if (!actions) return fail(actions.error());
    for (Action& action : *actions) chain.push_back(std::move(action));
  }
  return ActionChain(std::move(chain));
}

}  // namespace sockalarm
