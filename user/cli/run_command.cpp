// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sockalarm/sockalarm.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/unique_fd.h"
#include "cli/commands.h"
#include "cli/process.h"

namespace sockalarm::cli {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

enum ExitStatus { kClientLeft = 123, kTimedOut = 124, kCannotExecute = 126, kNotFound = 127, kKilled = 137 };

struct RunOptions {
  std::vector<std::string> command;
  std::optional<int> fd;
  std::string on = "shut", source = "auto", signal = "TERM", timeout = "0", kill_after = "5s";
  std::vector<std::string> then;
  bool preserve_status = false, foreground = false, verbose = false, json = false;
};

// What the dispatcher thread tells the main thread; an eventfd wakes it.
class Mailbox {
 public:
  struct Letter {
    enum class What { left, signal } what;
    Event event;     // left
    int signal = 0;  // signal: for the command
  };

  Mailbox() : bell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  int fd() const noexcept { return bell_.get(); }

  void send(Letter letter) {
    {
      const std::lock_guard lock(mutex_);
      letters_.push_back(letter);
    }
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(bell_.get(), &one, sizeof one);
  }
  std::deque<Letter> take() {
    std::uint64_t count = 0;  // before the letters: one that comes in between rings again
    [[maybe_unused]] const ssize_t n = ::read(bell_.get(), &count, sizeof count);
    const std::lock_guard lock(mutex_);
    return std::exchange(letters_, {});
  }

 private:
  UniqueFd bell_;
  std::mutex mutex_;
  std::deque<Letter> letters_;
};

Error usage(std::string message) { return {Errc::invalid_text, std::move(message)}; }

bool is_stream(const DescriptorInfo& info) {
  static constexpr std::string_view kKinds[] = {"tcp",         "mptcp",          "sctp",
                                                "unix-stream", "unix-seqpacket", "vsock"};
  return !info.listening && std::find(std::begin(kKinds), std::end(kKinds), info.kind) != std::end(kKinds) &&
         (info.peer ||
          info.state == "CLOSE");  // CLOSE: reset before we were started; the peer's name is forgotten
}

// 0, then 1, as inetd and socat give it; then the only other one (systemd's Accept=yes).
Result<int> find_client() {
  const auto table = descriptor_table();
  if (!table) return fail(table.error());
  std::vector<int> streams;
  std::string found;
  for (const DescriptorInfo& info : *table) {
    if (is_stream(info)) streams.push_back(info.fd);
    found += "\n  " + to_string(info);
  }
  if (streams.size() == 1 || (!streams.empty() && streams.front() <= 1)) return streams.front();
  return fail(usage(
      (streams.empty() ? "no client: none of the descriptors is a connected stream socket"
                       : "several descriptors may be the client; choose one with --fd") +
      (" (a CGI program's stdin and stdout are usually pipes from the web server: pass the number of the "
       "client's socket with --fd). There are:" +
       found)));
}

Result<std::chrono::nanoseconds> parse_time(const std::string& option, const std::string& text) {
  // The library's own reading of durations, with the action's name cut from its messages.
  const auto action = parse_action("sleep:" + text);
  if (!action) return fail(usage(option + " '" + text + "' is not a time; expected 5s, 250ms, 1m or 1.5"));
  std::chrono::nanoseconds total{};
  const std::string canonical = to_string(*action).substr(6);
  const auto unit = canonical.find_first_not_of("0123456789");
  const auto count = std::stoll(canonical.substr(0, unit));
  const std::string name = canonical.substr(unit);
  total = name == "s" ? std::chrono::nanoseconds(std::chrono::seconds(count))
                      : std::chrono::nanoseconds(count * (name == "ms"   ? 1'000'000
                                                          : name == "us" ? 1'000
                                                                         : 1));
  return total;
}

// Everything that can be wrong is found before anything starts.
struct Plan {
  int fd = -1;
  Events on;
  SourceKind source = SourceKind::epoll;
  int signal = SIGTERM;
  std::chrono::nanoseconds timeout{}, kill_after{};
  ActionChain then;
};

Result<Plan> make_plan(const RunOptions& options) {
  Plan plan;
  const auto fd = options.fd ? Result<int>(*options.fd) : find_client();
  if (!fd) return fail(fd.error());
  const auto on = parse_events(options.on);
  if (!on) return fail(on.error().with_context("--on"));
  const auto source = parse_source(options.source);
  if (!source) return fail(source.error().with_context("--source"));
  const auto signal = signal_number(options.signal);
  if (!signal)
    return fail(usage("--signal '" + options.signal +
                      "' is not a signal; expected a name such as TERM or a number, see kill -l"));
  const auto timeout = parse_time("--timeout", options.timeout),
             kill_after = parse_time("--kill-after", options.kill_after);
  if (!timeout) return fail(timeout.error());
  if (!kill_after) return fail(kill_after.error());
  std::vector<Action> then;
  for (const std::string& text : options.then) {
    const auto chain = ActionChain::parse(text);
    if (!chain) return fail(chain.error().with_context("--then"));
    for (std::size_t i = 0; i < chain->size(); ++i) then.push_back((*chain)[i]);
  }
  plan.fd = *fd;
  plan.on = *on;
  // For one socket, loading BPF programs (some 50 ms) would cost more than it gives.
  plan.source = *source == SourceKind::automatic ? SourceKind::epoll : *source;
  plan.signal = *signal;
  plan.timeout = *timeout;
  plan.kill_after = *kill_after;
  plan.then = ActionChain(std::move(then));
  return plan;
}

// Of the signals that reach us: CHLD is ours, the others are the command's. KILL and STOP cannot be caught;
// those that tell of our own faults are left alone.
sigset_t handled_signals() {
  sigset_t set;
  ::sigfillset(&set);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGTTIN, SIGTTOU, SIGTSTP})
    ::sigdelset(&set, own);
  return set;
}

class Runner {
 public:
  Runner(const RunOptions& options, Plan plan) : options_(options), plan_(std::move(plan)) {}

  int run() {
    const sigset_t handled = handled_signals();
    ::sigprocmask(SIG_BLOCK, &handled, &mask_);
    signals_ = UniqueFd(::signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_) return complain(Error::from_errno(errno, "signalfd()"));
    auto watcher = Watcher::create({.source = plan_.source, .log = [](LogLevel level, std::string_view text) {
                                      if (level >= LogLevel::warning)
                                        std::cerr << "sockalarm run: " << text << "\n";
                                    }});
    if (!watcher) return complain(watcher.error());
    auto watch = watcher->watch(plan_.fd);
    if (!watch) return complain(watch.error());
    if (watch->seen() & plan_.on) {
      tell("client_left", {{"events", to_string(watch->seen() & plan_.on)}, {"before_start", true}},
           "the client had left before the start");
      return kClientLeft;
    }
    auto command =
        Command::start({.argv = options_.command, .own_group = !options_.foreground, .mask = mask_});
    if (!command) return cannot_start(command.error());
    command_.emplace(*command);
    tell("start", {{"pid", command_->pid()}, {"fd", plan_.fd}, {"source", to_string(watch->source())}},
         "watching descriptor " + std::to_string(plan_.fd) + ", running process " +
             std::to_string(command_->pid()));
    auto alarm = watch->arm(make_chain(), {.on = plan_.on, .deadline = plan_.timeout});
    if (!alarm) {
      command_->signal_all(SIGKILL);
      return complain(alarm.error());
    }
    while (!over()) wait();
    return finish();
  }

 private:
  int complain(const Error& error) const {
    std::cerr << "sockalarm run: " << error.message() << "\n";
    return kExitFailed;
  }
  int cannot_start(const Error& error) const {
    complain(error);
    return error.code() == std::errc::no_such_file_or_directory ? kNotFound : kCannotExecute;
  }

  void tell(const char* event, nlohmann::json fields, const std::string& words) const {
    if (options_.json) {
      fields["event"] = event;
      std::cerr << fields.dump() << "\n";
    } else if (options_.verbose) {
      std::cerr << "sockalarm run: " << words << "\n";
    }
  }

  // Tell the main thread, the wished actions, then the signal, unless one of the actions is one: "sig:" means
  // the command here.
  ActionChain make_chain() {
    std::vector<Action> actions{call([this](const Event& event) {
      mailbox_.send({Mailbox::Letter::What::left, event, 0});
      return Verdict::proceed;
    })};
    const auto signal_command = [this](int signal) {
      return call([this, signal] { mailbox_.send({Mailbox::Letter::What::signal, {}, signal}); });
    };
    bool signals = false;
    for (std::size_t i = 0; i < plan_.then.size(); ++i) {
      const std::string text = to_string(plan_.then[i]);
      if (text.starts_with("sig:")) {
        signals = true;
        const std::string name = text.substr(4, text.find(':', 4) - 4);
        actions.push_back(signal_command(signal_number(name).value_or(SIGTERM)));
      } else {
        actions.push_back(plan_.then[i]);
      }
    }
    if (!signals) actions.push_back(signal_command(plan_.signal));
    return ActionChain(std::move(actions));
  }

  // The command has ended, and if we ended it, so has all that it started.
  // What cannot be killed (another user's) is left after some attempts.
  bool over() const {
    return command_->ended() && !(left_ && command_->has_descendants() && kills_ < kMostKills);
  }

  void wait() {
    pollfd entries[] = {{signals_.get(), POLLIN, 0}, {mailbox_.fd(), POLLIN, 0}};
    int timeout = -1;
    if (kill_at_)
      timeout = static_cast<int>(std::clamp<long long>(
          std::chrono::ceil<std::chrono::milliseconds>(*kill_at_ - Clock::now()).count(), 0, 1'000'000'000));
    ::poll(entries, 2, timeout);
    for (const Mailbox::Letter& letter : mailbox_.take()) read(letter);
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info))
      if (info.ssi_signo != SIGCHLD) command_->signal(static_cast<int>(info.ssi_signo));
    const bool just_ended = command_->reap();
    if (kill_at_ && Clock::now() >= *kill_at_) kill();
    // What the command left behind when we ended it gets the same treatment.
    if (just_ended && left_ && command_->has_descendants()) end_with(plan_.signal);
  }

  void read(const Mailbox::Letter& letter) {
    if (letter.what == Mailbox::Letter::What::signal) return end_with(letter.signal);
    left_ = letter.event;
    const bool timed_out = left_->what.contains(events::deadline);
    tell(timed_out ? "timeout" : "client_left", {{"events", to_string(left_->what)}, {"error", left_->error}},
         timed_out ? "the time limit passed" : "the client left (" + to_string(left_->what) + ")");
  }

  void end_with(int signal) {
    tell("signal", {{"signal", signal_name(signal)}}, "sending " + signal_name(signal));
    command_->signal_all(signal);
    if (!kill_at_ && plan_.kill_after.count() > 0) kill_at_ = Clock::now() + plan_.kill_after;
  }

  void kill() {
    tell("signal", {{"signal", "KILL"}}, "sending KILL");
    ++kills_;
    killed_ = killed_ || !command_->ended();
    command_->signal_all(SIGKILL);
    kill_at_ = Clock::now() + 50ms;  // again, for what was started in between
  }

  int finish() const {
    int status = command_->status();
    const char* reason = "command ended";
    if (left_ && !options_.preserve_status) {
      const bool timed_out = left_->what.contains(events::deadline);
      reason = timed_out ? "timeout" : "client left";
      status = killed_ ? kKilled : timed_out ? kTimedOut : kClientLeft;
    }
    tell("exit", {{"status", status}, {"reason", reason}},
         std::string(reason) + ", exit status " + std::to_string(status));
    return status;
  }

  const RunOptions& options_;
  const Plan plan_;
  sigset_t mask_{};
  UniqueFd signals_;
  Mailbox mailbox_;
  std::optional<Command> command_;
  std::optional<Event> left_;
  std::optional<Clock::time_point> kill_at_;
  bool killed_ = false;
  static constexpr int kMostKills = 20;
  int kills_ = 0;
};

int run_command(const RunOptions& options) {
  auto plan = make_plan(options);
  if (!plan) {
    std::cerr << "sockalarm run: " << plan.error().message() << "\n";
    return kExitFailed;
  }
  return Runner(options, std::move(*plan)).run();
}

constexpr const char* kFooter =
    "What happens when the client leaves or the time is over: the --then actions, the signal, and KILL after "
    "--kill-after. Everything that the command started is ended with it.\n\n"
    "A client that only half-closes (nc -N, some HTTP/1.0 clients) counts as one that left. Be lenient with "
    "--on reset,timeout,error.\n\n"
    "Exit status: the command's own, 128 + N if a signal N ended it; 123 the client left; 124 the time was "
    "over; 125 "
    "sockalarm failed; 126 the command cannot be executed; 127 it was not found; 137 it had to be killed.\n\n"
    "Examples:\n"
    "  socat TCP-LISTEN:8080,fork EXEC:'sockalarm run -- ./report.sh'\n"
    "  sockalarm run --timeout 60s --then \"run:mysql -e 'kill 42'\" -- ./export\n"
    "  sockalarm run --on reset,timeout --signal INT --kill-after 10s -- make\n"
    "  inetd.conf: report stream tcp nowait www /usr/bin/sockalarm sockalarm run -- /usr/bin/report";

}  // namespace

void add_run(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand("run", "Run a command, and end it when the client leaves");
  auto options = std::make_shared<RunOptions>();
  sub->add_option("--fd", options->fd, "the client's socket (default: 0, else 1, else the only one there is)")
      ->check(CLI::NonNegativeNumber);
  sub->add_option("--on", options->on,
                  "events that count as leaving: fin,reset,timeout,error, or shut for all (default: shut)");
  sub->add_option("--timeout", options->timeout, "end the command after this time in any case: 60s, 1.5, 5m");
  sub->add_option("--signal", options->signal, "what the command is sent (default: TERM)");
  sub->add_option("--kill-after", options->kill_after,
                  "send KILL if it still runs after this time; 0: never (default: 5s)");
  sub->add_option("--then", options->then,
                  "action before the signal, may be repeated: run:PROGRAM, sleep:2s, ...; sig:NAME is sent "
                  "to the command instead of the signal")
      ->allow_extra_args(false);
  sub->add_option("--source", options->source, "auto (here: epoll), kernel, epoll or poll");
  sub->add_flag("--preserve-status", options->preserve_status, "exit with the command's status in any case");
  sub->add_flag("--foreground", options->foreground,
                "leave the command in our process group, so that it can use the terminal");
  sub->add_flag("--verbose,-v", options->verbose, "tell on stderr what happens");
  sub->add_flag("--json", options->json, "the same as one JSON object per line");
  sub->add_option("COMMAND", options->command, "the command and its arguments, after --")->required();
  sub->footer(kFooter);
  sub->callback([&chosen, options] { chosen = [options] { return run_command(*options); }; });
}

}  // namespace sockalarm::cli
