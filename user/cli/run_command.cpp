// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sockalarm/sockalarm.h>
#include <sockalarm/unique_fd.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>

#include "base/mutex.h"
#include "base/signal_text.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/launcher.h"
#include "cli/process.h"
#include "cli/run_plan.h"

namespace sockalarm::cli {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

enum ExitStatus { kClientLeft = 123, kTimedOut = 124, kCannotExecute = 126, kNotFound = 127, kKilled = 137 };

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
      const MutexLock lock(mutex_);
      letters_.push_back(letter);
    }
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(bell_.get(), &one, sizeof one);
  }
  std::deque<Letter> take() {
    std::uint64_t count = 0;  // before the letters: one that comes in between rings again
    [[maybe_unused]] const ssize_t n = ::read(bell_.get(), &count, sizeof count);
    const MutexLock lock(mutex_);
    return std::exchange(letters_, {});
  }

 private:
  UniqueFd bell_;
  Mutex mutex_;
  std::deque<Letter> letters_ GUARDED_BY(mutex_);
};

// Of the signals that reach us: CHLD and TSTP are ours, PIPE is a log line that nobody reads, the others are
// the command's. KILL and STOP cannot be caught; those that tell of our own faults are left alone.
sigset_t handled_signals() {
  sigset_t set;
  ::sigfillset(&set);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGTTIN, SIGTTOU})
    ::sigdelset(&set, own);
  return set;
}

bool asks_to_end(int signal) {
  return signal == SIGTERM || signal == SIGINT || signal == SIGHUP || signal == SIGQUIT;
}

// Daemons start their children with SIGCHLD ignored, and then wait(2) tells nothing of ours. True: so it was.
bool stop_ignoring_children() { return ::signal(SIGCHLD, SIG_DFL) == SIG_IGN; }

class Runner {
 public:
  Runner(const RunOptions& options, RunPlan plan) : options_(options), plan_(std::move(plan)) {}

  int run() {
    const bool ignored_children = stop_ignoring_children();
    if (const auto programs = programs_of(plan_.then); !programs.empty()) {
      auto launcher = Launcher::start(programs, plan_.fd);
      if (!launcher) return complain(launcher.error());
      launcher_.emplace(std::move(*launcher));
    }
    const sigset_t handled = handled_signals();
    ::sigprocmask(SIG_BLOCK, &handled, &mask_);
    signals_ = UniqueFd(::signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_) return complain(Error::from_errno(errno, "signalfd()"));
    auto watcher = Watcher::create({.source = plan_.source, .log = [](LogLevel level, std::string_view text) {
                                      if (level >= LogLevel::warning)
                                        say("sockalarm run: " + std::string(text));
                                    }});
    if (!watcher) return complain(watcher.error());
    auto watch = watcher->watch(plan_.fd);
    if (!watch) return complain(watch.error());
    if (watch->seen() & plan_.on) {
      tell("client_left", {{"events", to_string(watch->seen() & plan_.on)}, {"before_start", true}},
           "the client had left before the start: " + options_.command.front() + " was not started", true);
      return kClientLeft;
    }
    if (const auto possible = watch->arm(ActionChain(), {.on = plan_.on}); !possible)
      return complain(possible.error());
    auto command = Command::start({.argv = options_.command,
                                   .own_group = !options_.foreground,
                                   .mask = mask_,
                                   .ignore_sigchld = ignored_children});
    if (!command) return not_started(command.error());
    command_.emplace(*command);
    tell("start", {{"pid", command_->pid()}, {"fd", plan_.fd}, {"source", to_string(watch->source())}},
         "watching descriptor " + std::to_string(plan_.fd) + ", running process " +
             std::to_string(command_->pid()));
    if (plan_.timeout.count() > 0) limit_at_ = Clock::now() + plan_.timeout;
    auto alarm = watch->arm(make_chain(), {.on = plan_.on, .deadline = plan_.timeout});
    if (!alarm) {
      command_->signal_all(SIGKILL);
      return complain(alarm.error());
    }
    while (!over()) {
      wait();
      if (limit_passed() && !alarm->finished()) end_at_limit();
    }
    return finish();
  }

 private:
  int complain(const Error& error) const {
    say("sockalarm run: " + error.message());
    return kExitFailed;
  }
  int not_started(const StartFailure& failure) const {
    complain(failure.error);
    if (!failure.executing) return kExitFailed;
    return failure.error.code() == std::errc::no_such_file_or_directory ? kNotFound : kCannotExecute;
  }

  void tell(const char* event, nlohmann::json fields, const std::string& words, bool always = false) const {
    if (options_.json) {
      fields["event"] = event;
      say(fields.dump());
    } else if (options_.verbose || always) {
      say("sockalarm run: " + words);
    }
  }

  static std::vector<Action> programs_of(const std::vector<Step>& steps) {
    std::vector<Action> programs;
    for (const Step& step : steps)
      if (step.is_program) programs.push_back(step.action);
    return programs;
  }

  // The one that the chain ends with.
  int last_signal() const {
    const auto last = std::find_if(plan_.then.rbegin(), plan_.then.rend(),
                                   [](const Step& step) { return step.signal.has_value(); });
    return last == plan_.then.rend() ? plan_.signal : *last->signal;
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
    const auto launch = [this](std::size_t program) {
      return call([this, program] {
        if (!launcher_->launch(program))
          say("sockalarm run: the process that starts programs has been killed");
      });
    };
    bool signals = false;
    std::size_t programs = 0;
    for (const Step& step : plan_.then) {
      signals = signals || step.signal;
      if (step.signal)
        actions.push_back(signal_command(*step.signal));
      else
        actions.push_back(step.is_program ? launch(programs++) : step.action);
    }
    if (!signals) actions.push_back(signal_command(plan_.signal));
    return ActionChain(std::move(actions));
  }

  // The command has ended, and if it was to end, so has all that it started.
  // What cannot be killed (another user's) is left after some attempts.
  bool over() const {
    return command_->ended() && !(ending_with_ && command_->has_descendants() && kills_ < kMostKills);
  }

  int poll_timeout() const {
    auto next = kill_at_;
    if (left_ && limit_at_) next = next ? std::min(*next, *limit_at_) : limit_at_;
    if (!next) return -1;
    return static_cast<int>(std::clamp<long long>(
        std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now()).count(), 0, 1'000'000'000));
  }

  void wait() {
    pollfd entries[] = {{signals_.get(), POLLIN, 0}, {mailbox_.fd(), POLLIN, 0}};
    ::poll(entries, 2, poll_timeout());
    for (const Mailbox::Letter& letter : mailbox_.take()) read(letter);
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info))
      on_signal(static_cast<int>(info.ssi_signo), info.ssi_code);
    const bool just_ended = command_->reap();
    if (kill_at_ && Clock::now() >= *kill_at_) kill();
    // What the command left behind when it was ended gets the same treatment.
    if (just_ended && ending_with_ && command_->has_descendants()) end_with(*ending_with_);
  }

  // The alarm's deadline went with the alarm when the client left: from then on the limit is ours. True once.
  bool limit_passed() {
    if (!left_ || !limit_at_ || Clock::now() < *limit_at_) return false;
    limit_at_.reset();
    return !left_->what.contains(events::deadline);
  }

  // In the middle of the actions that the client's leaving set off: they are not waited for.
  void end_at_limit() {
    tell("timeout", {{"events", to_string(events::deadline)}}, "the time limit passed");
    end_with(last_signal());
  }

  void on_signal(int signal, int code) {
    if (signal == SIGCHLD || signal == SIGPIPE) return;
    // What the terminal sends goes to a whole process group: the command has it already, and what it makes of
    // Ctrl-C is its own business.
    const bool has_it = options_.foreground && code == SI_KERNEL;
    if (!has_it) command_->signal(signal);
    if (signal == SIGTSTP) return stand_still();
    if (has_it || !asks_to_end(signal)) return;
    if (command_->ended()) command_->signal_all(signal);  // what it left behind has not heard it yet
    if (!ending_with_) ending_with_ = signal;
    start_kill_timer();
  }

  // As the default action of TSTP has it, so in an orphaned process group not at all. What wakes us wakes the
  // command.
  void stand_still() {
    sigset_t stop;
    ::sigemptyset(&stop);
    ::sigaddset(&stop, SIGTSTP);
    ::raise(SIGTSTP);
    ::pthread_sigmask(SIG_UNBLOCK, &stop, nullptr);
    ::pthread_sigmask(SIG_BLOCK, &stop, nullptr);
    command_->signal(SIGCONT);
  }

  void start_kill_timer() {
    if (!kill_at_ && plan_.kill_after.count() > 0) kill_at_ = Clock::now() + plan_.kill_after;
  }

  void read(const Mailbox::Letter& letter) {
    if (letter.what == Mailbox::Letter::What::signal) return end_with(letter.signal);
    left_ = letter.event;
    if (!ending_with_) ending_with_ = last_signal();
    const bool timed_out = left_->what.contains(events::deadline);
    tell(timed_out ? "timeout" : "client_left", {{"events", to_string(left_->what)}, {"error", left_->error}},
         timed_out ? "the time limit passed" : "the client left (" + to_string(left_->what) + ")");
  }

  void end_with(int signal) {
    const std::string name = detail::signal_name(signal);
    tell("signal", {{"signal", name}}, "sending " + name);
    ending_with_ = signal;
    command_->signal_all(signal);
    start_kill_timer();
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
  const RunPlan plan_;
  sigset_t mask_{};
  UniqueFd signals_;
  Mailbox mailbox_;
  std::optional<Launcher> launcher_;
  std::optional<Command> command_;
  std::optional<Event> left_;
  std::optional<int> ending_with_;  // the command is to end, by this signal: ours or one that was passed on
  std::optional<Clock::time_point> limit_at_, kill_at_;
  bool killed_ = false;
  static constexpr int kMostKills = 20;
  int kills_ = 0;
};

int run_command(const RunOptions& options) {
  auto plan = make_plan(options);
  if (!plan) {
    say("sockalarm run: " + plan.error().message());
    return kExitFailed;
  }
  return Runner(options, std::move(*plan)).run();
}

constexpr const char* kRunFooter =
    "What happens when the client leaves or the time is over: the --then actions, the signal, and KILL after "
    "--kill-after. Everything that the command started is ended with it, also when sockalarm itself is sent "
    "TERM, INT, HUP or QUIT.\n\n"
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

// A command given without -- would lose its options to ours, or have them refused.
std::optional<std::string> misplaced(const std::vector<std::string>& before,
                                     const std::vector<std::string>& unknown,
                                     const std::vector<std::string>& command) {
  if (!before.empty())
    return sockalarm::quoted(before.front()) +
           " stands before --; put the command after it: sockalarm run [OPTION]... -- " + before.front() +
           " [ARGUMENT]...";
  if (!unknown.empty())
    return "unknown option " + sockalarm::quoted(unknown.front()) + "; sockalarm run --help lists them";
  if (command.empty())
    return "COMMAND is missing; expected sockalarm run [OPTION]... -- COMMAND [ARGUMENT]...";
  return std::nullopt;
}

}  // namespace

void add_run(CLI::App& app, Task& chosen, const std::vector<std::string>& command) {
  CLI::App* sub = app.add_subcommand("run", "Run a command, and end it when the client leaves");
  auto options = std::make_shared<RunOptions>();
  auto before = std::make_shared<std::vector<std::string>>();
  sub->add_option(
         "--fd", options->fd,
         "the client's socket (default: 0, else 1, else the one that systemd or a CGI server passed)")
      ->type_name("N");
  sub->add_option("--on", options->on,
                  "events that count as leaving, separated by commas; shut is the first four (default: shut)")
      ->type_name("fin|reset|timeout|error|shut|eof|readable|urgent|deadline");
  sub->add_option("--timeout", options->timeout,
                  "end the command after this time in any case: 60s, 1.5, 5m, 2h")
      ->type_name("TIME");
  sub->add_option("--signal", options->signal, "what the command is sent (default: TERM)")
      ->type_name("SIGNAL");
  sub->add_option("--kill-after", options->kill_after,
                  "send KILL if it still runs after this time; 0: never (default: 5s)")
      ->type_name("TIME");
  sub->add_option("--then", options->then,
                  "action before the signal, may be repeated: run:PROGRAM, sleep:2s, ...; sig:NAME is sent "
                  "to the command instead of the signal")
      ->type_name("ACTION")
      ->allow_extra_args(false);
  sub->add_option("--source", options->source, "where the news comes from (default: auto, here epoll)")
      ->type_name("auto|kernel|epoll|poll");
  sub->add_flag("--preserve-status", options->preserve_status, "exit with the command's status in any case");
  sub->add_flag("--foreground", options->foreground,
                "leave the command in our process group, so that it can use the terminal");
  sub->add_flag("--verbose,-v", options->verbose, "tell on stderr what happens");
  sub->add_flag("--json", options->json, "the same as one JSON object per line");
  sub->add_option("COMMAND", *before, "the command and its arguments, after --");
  sub->allow_extras();
  sub->footer(kRunFooter);
  sub->callback([&chosen, &command, sub, options, before] {
    chosen = [&command, sub, options, before] {
      if (const auto wrong = misplaced(*before, sub->remaining(), command)) {
        say("sockalarm run: " + *wrong);
        return kExitFailed;
      }
      options->command = command;
      return run_command(*options);
    };
  });
}

}  // namespace sockalarm::cli
