// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <poll.h>
#include <sockalarm/action.h>
#include <sockalarm/unique_fd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <exception>

#include "base/signal_text.h"
#include "core/action_impl.h"
#include "core/action_text.h"
#include "core/open_descriptors.h"
#include "core/shell_words.h"
#include "core/socket_identity.h"
#include "core/spawn.h"

#if SOCKALARM_LINUX
#include <sys/syscall.h>
#endif

extern char** environ;

namespace sockalarm {
namespace {

using detail::ActionContext;
using detail::ActionImpl;
using detail::Outcome;

Error invalid(std::string message) { return {Errc::invalid_action, std::move(message)}; }
Error invalid_errno(int number, std::string what) {
  return invalid(Error::from_errno(number, std::move(what)).message());
}
std::string descriptor(int fd) { return "descriptor " + std::to_string(fd); }

// Holds the text, which says all of an action but code, and does not run what has an error.
class Step : public ActionImpl {
 public:
  explicit Step(std::string text) : text_(std::move(text)) {}
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  std::string text() const final { return text_; }
  Outcome run(const ActionContext& context) const final {
    return error_ ? Outcome::failed(*error_) : act(context);
  }

 private:
  virtual Outcome act(const ActionContext& context) const = 0;
  const std::string text_;
};

// The outcome of a system call, errno in hand.
Outcome called(bool succeeded, const std::string& what) {
  return succeeded ? Outcome::proceed() : Outcome::failed(Error::from_errno(errno, what));
}

std::string signal_text(int signal) {
  const std::string name = detail::signal_name(signal);
  return name.empty() ? std::to_string(signal) : name;
}

std::optional<Error> signal_error(int signal) {
  if (!detail::signal_name(signal).empty()) return std::nullopt;
  return invalid(std::to_string(signal) +
                 " is not a signal; expected one of kill -l, such as SIGALRM or SIGRTMIN+3");
}

class SendSignal final : public Step {
 public:
  SendSignal(int signal, SignalTarget target)
      : Step("sig:" + signal_text(signal) + (target == SignalTarget::process ? ":process" : "")),
        signal_(signal),
        target_(target) {
    error_ = signal_error(signal);
    if (!SOCKALARM_LINUX && !error_ && target == SignalTarget::arming_thread)
      error_ = Error(Errc::unsupported, "a signal to one thread needs Linux; expected SignalTarget::process");
  }
  int thread_signal() const noexcept override { return target_ == SignalTarget::arming_thread ? signal_ : 0; }

 private:
  Outcome act([[maybe_unused]] const ActionContext& context) const override {
    if (target_ == SignalTarget::process)
      return called(::kill(::getpid(), signal_) == 0, "sending " + signal_text(signal_) + " to this process");
#if SOCKALARM_LINUX
    return called(::syscall(SYS_tgkill, ::getpid(), context.arming_thread, signal_) == 0,
                  "sending " + signal_text(signal_) + " to thread " + std::to_string(context.arming_thread) +
                      ", which armed the alarm");
#else
    return Outcome::proceed();  // has an error
#endif
  }

  const int signal_;
  const SignalTarget target_;
};

class KillProcess final : public Step {
 public:
  KillProcess(int signal, pid_t pid)
      : Step("kill:" + signal_text(signal) + ":" + std::to_string(pid)), signal_(signal), pid_(pid) {
    error_ = signal_error(signal);
    if (!error_ && pid <= 0)  // kill(2) would take it for a process group, or everybody
      error_ = invalid("process id " + std::to_string(pid) + ": expected one above 0");
    if (!error_) find_process();
  }

 private:
  void find_process() {
    const std::string what = "process " + std::to_string(pid_);
#if SOCKALARM_LINUX && defined(SYS_pidfd_open)
    const auto opened = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0U));
    const int why = errno;
    if (opened >= 0) return pidfd_.reset(opened);
    if (why == ESRCH)
      error_ = invalid_errno(why, what);
    else if (why == EINVAL)
      error_ = invalid_errno(why, what + ": expected the id of a process, not of a thread");
    else if (why != ENOSYS && why != EPERM)
      error_ = Error::from_errno(why, what + ": pidfd_open");
    if (error_) return;
    // Linux < 5.3 (ENOSYS), or a sandbox that does not know the call (EPERM).
#endif
    if (::kill(pid_, 0) != 0 && errno != EPERM) error_ = invalid_errno(errno, what);
  }

  Outcome act(const ActionContext&) const override {
    const std::string what = "sending " + signal_text(signal_) + " to process " + std::to_string(pid_);
#if SOCKALARM_LINUX && defined(SYS_pidfd_send_signal)
    if (pidfd_)
      return called(::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal_, nullptr, 0U) == 0, what);
#endif
    return called(::kill(pid_, signal_) == 0, what);
  }

  const int signal_;
  const pid_t pid_;
  UniqueFd pidfd_;
};

// What is done to a descriptor.
struct Deed {
  std::string_view verb;  // in the text form
  int how;                // for shutdown(2)
};
constexpr int kClose = -1;
constexpr Deed kCloseIt{"close", kClose}, kShutRead{"shut_r", SHUT_RD}, kShutWrite{"shut_w", SHUT_WR},
    kShutBoth{"shut_rw", SHUT_RDWR};

std::string deed_text(const Deed& deed, const std::string& target) {
  return std::string(deed.verb) + ":" + target;
}

Outcome do_deed(const Deed& deed, int fd) {
  // EINTR: the descriptor is gone nevertheless (Linux), and trying again could hit a new one.
  if (deed.how == kClose) return called(::close(fd) == 0 || errno == EINTR, "closing " + descriptor(fd));
  return called(::shutdown(fd, deed.how) == 0, "shutting down " + descriptor(fd));
}

class ToDescriptor final : public Step {
 public:
  ToDescriptor(const Deed& deed, int fd)
      : Step(deed_text(deed, std::to_string(fd))),
        deed_(deed),
        fd_(fd),
        identity_(detail::file_identity(fd)) {
    int type = 0;
    socklen_t length = sizeof type;
    if (!identity_)
      error_ = invalid(descriptor(fd) + " is not open; expected one that is");
    else if (deed.how != kClose && ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0)
      error_ = invalid(descriptor(fd) + " is not a socket; expected one, for only sockets can be shut down");
  }

 private:
  // Between the look and the deed another thread may still close it and open another: POSIX has no way to do
  // both.
  Outcome act(const ActionContext&) const override {
    if (detail::file_identity(fd_) == identity_) return do_deed(deed_, fd_);
    return Outcome::failed({std::make_error_code(std::errc::bad_file_descriptor),
                            descriptor(fd_) + " is closed or another file by now: nothing was touched"});
  }

  const Deed& deed_;
  const int fd_;
  const std::optional<std::uint64_t> identity_;
};

bool is_connected_to(int fd, const SocketAddress& peer) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  return ::getpeername(fd, generic, &length) == 0 && SocketAddress(generic, length) == peer;
}

class ToPeer final : public Step {
 public:
  ToPeer(const Deed& deed, const SocketAddress& peer)
      : Step(deed_text(deed, detail::quote_word(to_string(peer)))), deed_(deed), peer_(peer) {
    if (peer.family() != AF_INET && peer.family() != AF_INET6 && peer.family() != AF_UNIX)
      error_ = invalid("a peer with address " + to_string(peer) + "; expected IPv4, IPv6 or AF_UNIX");
    else if (to_string(peer) == "unix:")  // as of every accepted AF_UNIX connection and every socketpair
      error_ = invalid("an unnamed AF_UNIX peer cannot be told from others; expected a path or @name");
  }

 private:
  Outcome act(const ActionContext&) const override {
    const auto open = detail::open_descriptors();
    if (!open) return Outcome::failed(open.error());
    std::vector<std::uint64_t> done;  // a socket that dup(2) gave several descriptors is shut down once
    Outcome outcome = Outcome::failed(
        {Errc::not_connected, "no socket of this process is connected to " + to_string(peer_) +
                                  " (one whose own connection was reset no longer has a peer)"});
    bool found = false;
    for (const int fd : *open) {
      if (!is_connected_to(fd, peer_)) continue;
      if (!std::exchange(found, true)) outcome = Outcome::proceed();
      if (deed_.how != kClose) {
        const std::uint64_t socket = detail::file_identity(fd).value_or(0);
        if (std::find(done.begin(), done.end(), socket) != done.end()) continue;
        done.push_back(socket);
      }
      const Outcome one = do_deed(deed_, fd);
      if (one.failure && !outcome.failure) outcome = one;  // the others get their turn all the same
    }
    return outcome;
  }

  const Deed& deed_;
  const SocketAddress peer_;
};

std::string program_text(const char* verb, const std::vector<std::string>& argv) {
  std::string text = verb;
  for (const std::string& word : argv)
    text += (&word == &argv.front() ? ":" : " ") + detail::quote_word(word);
  return argv.empty() ? text + ":" : text;
}

class Program : public Step {
 public:
  Program(const char* verb, std::vector<std::string> argv)
      : Step(program_text(verb, argv)), words_(std::move(argv)) {
    const auto cut = [](const std::string& word) { return word.find('\0') != std::string::npos; };
    if (words_.empty()) {
      error_ = invalid("no program is named; expected its name and its arguments");
    } else if (std::any_of(words_.begin(), words_.end(), cut)) {
      error_ = invalid("a program's argument contains NUL; expected words without");
    } else if (auto path = detail::find_program(words_.front())) {
      path_ = std::move(*path);
    } else {
      error_ = path.error();
    }
    for (std::string& word : words_) argv_.push_back(word.data());
    argv_.push_back(nullptr);
  }

 protected:
  const std::string& path() const { return path_; }
  char* const* argv() const { return argv_.data(); }

 private:
  std::vector<std::string> words_;
  std::vector<char*> argv_;  // into words_
  std::string path_;
};

class Run final : public Program {
 public:
  explicit Run(std::vector<std::string> argv) : Program("run", std::move(argv)) {}

 private:
  Outcome act(const ActionContext& context) const override {
    const auto started = detail::spawn_detached(path(), argv(), context.program_mask);
    return started ? Outcome::proceed() : Outcome::failed(started.error());
  }
};

class Exec final : public Program {
 public:
  explicit Exec(std::vector<std::string> argv) : Program("exec", std::move(argv)) {}

 private:
  // The program inherits this thread's mask (execve(2)), so a pending signal may meet its handler here just
  // before.
  Outcome act(const ActionContext& context) const override {
    sigset_t before;
    ::pthread_sigmask(SIG_SETMASK, &context.program_mask, &before);
    ::execve(path().c_str(), argv(), environ);
    const int error = errno;
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return Outcome::failed(Error::from_errno(error, "executing " + path()));
  }
};

class Sleep final : public Step {
 public:
  explicit Sleep(std::chrono::nanoseconds duration)
      : Step("sleep:" + detail::duration_text(duration)), duration_(duration) {
    if (duration < duration.zero() || duration > detail::kLongestSleep)
      error_ =
          invalid("a sleep of " + detail::duration_text(duration) + "; expected between 0 and 100 years");
  }

 private:
  Outcome act(const ActionContext&) const override { return {Outcome::Next::pause, duration_, std::nullopt}; }

  const std::chrono::nanoseconds duration_;
};

// What cannot be written down, so equal to itself alone.
class Code : public Step {
 public:
  using Step::Step;
};

class Call final : public Code {
 public:
  explicit Call(std::function<Verdict(const Event&)> function, bool blocks = false)
      : Code(blocks ? "call_blocking" : "call"), function_(std::move(function)), blocks_(blocks) {
    if (!function_) error_ = invalid(text() + ": the function is empty; expected one that can be called");
  }
  bool may_block() const noexcept override { return blocks_; }

 private:
  static Outcome threw(std::error_code code, const std::string& what) {
    return {Outcome::Next::stop, {}, Error(code, "the called function threw " + what)};
  }
  Outcome act(const ActionContext& context) const override {
    const auto cancelled = std::make_error_code(std::errc::operation_canceled);
    try {
      if (function_(context.event) == Verdict::proceed) return Outcome::proceed();
      return {Outcome::Next::stop, {}, std::nullopt};
    } catch (const std::system_error& error) {
      return threw(error.code(), error.what());
    } catch (const std::exception& error) {
      return threw(cancelled, error.what());
    } catch (...) {
      return threw(cancelled, "something that is no std::exception");
    }
  }

  const std::function<Verdict(const Event&)> function_;
  const bool blocks_;
};

// What calls a function without arguments; empty if that is.
std::function<Verdict(const Event&)> going_on(std::function<void()> function) {
  if (!function) return nullptr;
  return [function = std::move(function)](const Event&) {
    function();
    return Verdict::proceed;
  };
}

class RequestStop final : public Code {
 public:
  explicit RequestStop(std::stop_source source) : Code("stop"), source_(std::move(source)) {
    if (!source_.stop_possible())
      error_ = invalid("stop: the stop_source has no state; expected one that can stop");
  }

 private:
  Outcome act(const ActionContext&) const override {
    source_.request_stop();  // false: somebody else did it before
    return Outcome::proceed();
  }

  const std::stop_source source_;
};

class Notify final : public Step {
 public:
  explicit Notify(int fd)
      : Step("notify:" + std::to_string(fd)), fd_(fd), identity_(detail::file_identity(fd)) {
    if (!identity_) error_ = invalid(descriptor(fd) + " is not open; expected an eventfd");
#if SOCKALARM_LINUX
    if (error_) return;
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    char file[64] = "";
    const ssize_t length = ::readlink(link.c_str(), file, sizeof file);
    if (length < 0)
      error_ = Error::from_errno(
          errno, "is " + descriptor(fd) + " an eventfd? Reading " + link + " (is /proc mounted?)");
    else if (std::string_view(file, static_cast<std::size_t>(length)) != "anon_inode:[eventfd]")
      error_ = invalid(descriptor(fd) + " is " + std::string(file, static_cast<std::size_t>(length)) +
                       "; expected an eventfd");
#endif
  }

 private:
  // All of Linux' anonymous files share one inode, so another eventfd under this number cannot be told from
  // the first; a socket or a file is never written to. Whoever is not ready to be written to, or full, has
  // unread notifications: not waiting for it loses nothing. Off Linux it may be the writing end of a pipe.
  Outcome act(const ActionContext&) const override {
    const std::string what = "notifying " + descriptor(fd_);
    if (detail::file_identity(fd_) != identity_)
      return Outcome::failed({std::make_error_code(std::errc::bad_file_descriptor),
                              what + ": it is closed or another file by now: nothing was touched"});
    pollfd out{fd_, POLLOUT, 0};
    if (::poll(&out, 1, 0) < 0) return called(false, what);
    if ((out.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0)
      return Outcome::failed({std::make_error_code(std::errc::broken_pipe), what + ": nobody can read it"});
    if ((out.revents & POLLOUT) == 0) return Outcome::proceed();
    const std::uint64_t one = 1;
    return called(::write(fd_, &one, sizeof one) == static_cast<ssize_t>(sizeof one) || errno == EAGAIN,
                  what);
  }

  const int fd_;
  const std::optional<std::uint64_t> identity_;
};

template <class Impl, class... Arguments>
Action make(Arguments&&... arguments) {
  return Action(std::make_shared<const Impl>(std::forward<Arguments>(arguments)...));
}

}  // namespace

Action send_signal(int signal, SignalTarget target) { return make<SendSignal>(signal, target); }
Action kill_process(int signal, pid_t pid) { return make<KillProcess>(signal, pid); }
Action close_fd(int fd) { return make<ToDescriptor>(kCloseIt, fd); }
Action shutdown_read(int fd) { return make<ToDescriptor>(kShutRead, fd); }
Action shutdown_write(int fd) { return make<ToDescriptor>(kShutWrite, fd); }
Action shutdown_both(int fd) { return make<ToDescriptor>(kShutBoth, fd); }
Action close_peer(SocketAddress peer) { return make<ToPeer>(kCloseIt, peer); }
Action shutdown_read(SocketAddress peer) { return make<ToPeer>(kShutRead, peer); }
Action shutdown_write(SocketAddress peer) { return make<ToPeer>(kShutWrite, peer); }
Action shutdown_both(SocketAddress peer) { return make<ToPeer>(kShutBoth, peer); }
Action run(std::vector<std::string> argv) { return make<Run>(std::move(argv)); }
Action exec(std::vector<std::string> argv) { return make<Exec>(std::move(argv)); }
Action sleep_for(std::chrono::nanoseconds duration) { return make<Sleep>(duration); }
Action call(std::function<Verdict(const Event&)> function) { return make<Call>(std::move(function)); }
Action call(std::function<void()> function) { return make<Call>(going_on(std::move(function))); }
Action call_blocking(std::function<Verdict(const Event&)> function) {
  return make<Call>(std::move(function), true);
}
Action call_blocking(std::function<void()> function) {
  return make<Call>(going_on(std::move(function)), true);
}
Action request_stop(std::stop_source source) { return make<RequestStop>(std::move(source)); }
Action notify(int eventfd) { return make<Notify>(eventfd); }

const Error* Action::error() const noexcept { return impl_->error() ? &*impl_->error() : nullptr; }

bool operator==(const Action& a, const Action& b) {
  if (&a.impl() == &b.impl()) return true;
  return dynamic_cast<const Code*>(&a.impl()) == nullptr && to_string(a) == to_string(b);
}

ActionChain::ActionChain(const Action& action) : ActionChain(std::vector<Action>{action}) {}
ActionChain::ActionChain(std::initializer_list<Action> actions) : ActionChain(std::vector<Action>(actions)) {}
ActionChain::ActionChain(std::vector<Action> actions) {
  if (actions.empty()) return;
  actions_ = std::make_shared<const std::vector<Action>>(std::move(actions));
  for (const Action& action : *actions_)
    if (error_ == nullptr) error_ = action.error();
  first_signal_ = actions_->front().impl().thread_signal();
}

ActionChain repeated(const Action& action, int times, std::chrono::nanoseconds pause) {
  constexpr std::chrono::nanoseconds kLongest = std::chrono::seconds(1);
  std::vector<Action> steps;
  for (int i = 0; i < times; ++i) {
    if (i > 0) {
      steps.push_back(sleep_for(pause));
      if (pause < kLongest) pause = std::min(pause * 2, kLongest);
    }
    steps.push_back(action);
  }
  return ActionChain(std::move(steps));
}

// A chain that was moved from has no actions, but still the pointer.
const Error* ActionChain::error() const noexcept { return actions_ ? error_ : nullptr; }

}  // namespace sockalarm
