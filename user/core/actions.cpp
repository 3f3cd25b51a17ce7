// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <signal.h>
#include <sockalarm/action.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <utility>

#include "base/text.h"
#include "base/unique_fd.h"
#include "core/action_impl.h"
#include "core/action_text.h"
#include "core/own_descriptors.h"
#include "core/shell_words.h"
#include "core/signal_text.h"
#include "core/socket_identity.h"
#include "core/spawn.h"

#if SOCKALARM_LINUX
#include <sys/syscall.h>
#endif

namespace sockalarm {
namespace {

using detail::ActionContext;
using detail::ActionImpl;
using detail::Outcome;

template <class Impl, class... Arguments>
Action make(Arguments&&... arguments) {
  return Action(std::make_shared<const Impl>(std::forward<Arguments>(arguments)...));
}

Outcome outcome_of(int result, const std::string& what) {
  return result == 0 ? Outcome::proceed() : Outcome::failed(Error::from_errno(errno, what));
}

std::optional<Error> check_signal(int signal) {
  if (signal >= 1 && signal <= SIGRTMAX) return std::nullopt;
  return Error(Errc::invalid_action,
               "signal " + std::to_string(signal) + " does not exist; use 1 to " + std::to_string(SIGRTMAX));
}

class SendSignal final : public ActionImpl {
 public:
  SendSignal(int signal, SignalTarget target) : signal_(signal), target_(target) {
    error_ = check_signal(signal);
    if (!error_ && target == SignalTarget::arming_thread && SOCKALARM_LINUX == 0)
      error_ = Error(Errc::unsupported, "a signal to one thread needs Linux; use SignalTarget::process");
  }
  Outcome run([[maybe_unused]] const ActionContext& context) const override {
#if SOCKALARM_LINUX
    if (target_ == SignalTarget::arming_thread)
      return outcome_of(static_cast<int>(::syscall(SYS_tgkill, ::getpid(), context.arming_thread, signal_)),
                        "signal to thread " + std::to_string(context.arming_thread));
#endif
    return outcome_of(::kill(::getpid(), signal_), "signal to this process");
  }
  std::string text() const override {
    return "sig:" + detail::signal_name(signal_) + (target_ == SignalTarget::process ? ":process" : "");
  }

 private:
  int signal_;
  SignalTarget target_;
};

class KillProcess final : public ActionImpl {
 public:
  KillProcess(int signal, pid_t pid) : signal_(signal), pid_(pid) {
    error_ = check_signal(signal);
    if (error_) return;
    if (pid <= 0) {
      error_ = Error(Errc::invalid_action,
                     "process id " + std::to_string(pid) + " is not a single process; it must be above 0");
      return;
    }
#if SOCKALARM_LINUX
    pidfd_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));  // 5.3; close-on-exec
    if (!pidfd_ && errno != ENOSYS) error_ = Error::from_errno(errno, "process " + std::to_string(pid));
    if (pidfd_ || error_) return;
#endif
    if (::kill(pid, 0) != 0 && errno != EPERM)
      error_ = Error::from_errno(errno, "process " + std::to_string(pid));
  }
  Outcome run(const ActionContext&) const override {
    const std::string what = "signal to process " + std::to_string(pid_);
#if SOCKALARM_LINUX
    if (pidfd_)
      return outcome_of(static_cast<int>(::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal_, nullptr, 0)),
                        what);
#endif
    return outcome_of(::kill(pid_, signal_), what);
  }
  std::string text() const override {
    return "kill:" + detail::signal_name(signal_) + ":" + std::to_string(pid_);
  }

 private:
  int signal_;
  pid_t pid_;
  UniqueFd pidfd_;
};

// close or shutdown: what is done to a descriptor, and what it is called.
enum class Ending { close, shutdown_read, shutdown_write, shutdown_both };

const char* name_of(Ending how) noexcept {
  switch (how) {
    case Ending::close:
      return "close";
    case Ending::shutdown_read:
      return "shut_r";
    case Ending::shutdown_write:
      return "shut_w";
    case Ending::shutdown_both:
      break;
  }
  return "shut_rw";
}

int end(Ending how, int fd) noexcept {
  switch (how) {
    case Ending::close:
      return ::close(fd);
    case Ending::shutdown_read:
      return ::shutdown(fd, SHUT_RD);
    case Ending::shutdown_write:
      return ::shutdown(fd, SHUT_WR);
    case Ending::shutdown_both:
      break;
  }
  return ::shutdown(fd, SHUT_RDWR);
}

class EndDescriptor final : public ActionImpl {
 public:
  EndDescriptor(Ending how, int fd) : how_(how), fd_(fd), identity_(detail::file_identity(fd)) {
    struct stat status{};
    if (!identity_ || ::fstat(fd, &status) != 0)
      error_ = Error::from_errno(EBADF, "descriptor " + std::to_string(fd));
    else if (how != Ending::close && !S_ISSOCK(status.st_mode))
      error_ = Error(Errc::not_a_socket,
                     "descriptor " + std::to_string(fd) + " is not a socket and cannot be shut down");
  }
  Outcome run(const ActionContext&) const override {
    const std::string what = std::string(name_of(how_)) + " of descriptor " + std::to_string(fd_);
    if (detail::file_identity(fd_) != identity_)
      return Outcome::failed(Error::from_errno(
          EBADF, what + ": it was closed, and the number may mean another file now; left alone"));
    return outcome_of(end(how_, fd_), what);
  }
  std::string text() const override { return std::string(name_of(how_)) + ":" + std::to_string(fd_); }

 private:
  Ending how_;
  int fd_;
  std::optional<std::uint64_t> identity_;
};

class EndPeer final : public ActionImpl {
 public:
  EndPeer(Ending how, const SocketAddress& peer) : how_(how), peer_(peer) {
    if (peer.family() != AF_INET && peer.family() != AF_INET6 && peer.family() != AF_UNIX)
      error_ =
          Error(Errc::invalid_action, to_string(peer) + " cannot be a peer here; use IPv4, IPv6 or AF_UNIX");
  }
  Outcome run(const ActionContext&) const override {
    const std::string what = std::string(name_of(how_)) + " of what is connected to " + to_string(peer_);
    auto descriptors = detail::own_descriptors();
    if (!descriptors) return Outcome::failed(descriptors.error().with_context(what));
    int hits = 0;
    std::optional<Error> failure;
    for (const int fd : *descriptors) {
      sockaddr_storage name{};
      socklen_t length = sizeof name;
      if (::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) continue;
      if (!(SocketAddress(reinterpret_cast<sockaddr*>(&name), length) == peer_)) continue;
      ++hits;
      if (end(how_, fd) != 0) failure = Error::from_errno(errno, what + ": descriptor " + std::to_string(fd));
    }
    if (hits == 0) failure = Error::from_errno(ENOTCONN, what + ": there is none");
    return {Outcome::Next::proceed, {}, std::move(failure)};
  }
  std::string text() const override {
    return std::string(name_of(how_)) + ":" + detail::quote_word(to_string(peer_));
  }

 private:
  Ending how_;
  SocketAddress peer_;
};

class Program final : public ActionImpl {
 public:
  enum class How { run, exec };
  Program(How how, std::vector<std::string> argv) : how_(how), argv_(std::move(argv)) {
    auto path = argv_.empty() ? fail(Error(Errc::invalid_action, "no program was named"))
                              : detail::find_program(argv_.front());
    if (path)
      path_ = std::move(*path);
    else
      error_ = path.error();
    for (const std::string& word : argv_)
      if (word.find('\0') != std::string::npos)
        error_ =
            Error(Errc::invalid_action, "an argument of " + quoted(argv_.front()) + " contains a zero byte");
  }
  Outcome run(const ActionContext& context) const override {
    if (how_ == How::exec)
      return Outcome::failed(detail::replace_process(path_, argv_, context.program_mask));
    auto started = detail::start_detached(path_, argv_, context.program_mask);
    return started ? Outcome::proceed() : Outcome::failed(started.error());
  }
  std::string text() const override {
    std::string words = how_ == How::run ? "run:" : "exec:";
    for (std::size_t i = 0; i < argv_.size(); ++i)
      words += (i == 0 ? "" : " ") + detail::quote_word(argv_[i]);
    return words;
  }

 private:
  How how_;
  std::vector<std::string> argv_;
  std::string path_;
};

class Sleep final : public ActionImpl {
 public:
  explicit Sleep(std::chrono::nanoseconds duration) : duration_(duration) {
    if (duration.count() < 0)
      error_ = Error(Errc::invalid_action, "cannot sleep for " + std::to_string(duration.count()) +
                                               " ns; the time must not be negative");
  }
  Outcome run(const ActionContext&) const override { return {Outcome::Next::pause, duration_, std::nullopt}; }
  std::string text() const override { return "sleep:" + detail::duration_text(duration_); }

 private:
  std::chrono::nanoseconds duration_;
};

class Call final : public ActionImpl {
 public:
  explicit Call(std::function<Verdict(const Event&)> function) : function_(std::move(function)) {
    if (!function_) error_ = Error(Errc::invalid_action, "the function to call is empty");
  }
  Outcome run(const ActionContext& context) const override {
    std::string why = "an exception that is not a std::exception";
    try {
      return {function_(context.event) == Verdict::stop ? Outcome::Next::stop : Outcome::Next::proceed,
              {},
              std::nullopt};
    } catch (const std::exception& exception) {
      why = exception.what();
    } catch (...) {
    }
    return {Outcome::Next::stop, {}, Error(Errc::invalid_action, "the called function threw: " + why)};
  }
  std::string text() const override { return "call"; }

 private:
  std::function<Verdict(const Event&)> function_;
};

class RequestStop final : public ActionImpl {
 public:
  explicit RequestStop(std::stop_source source) : source_(std::move(source)) {
    if (!source_.stop_possible()) error_ = Error(Errc::invalid_action, "the stop_source has no state");
  }
  Outcome run(const ActionContext&) const override {
    source_.request_stop();  // false: somebody else did; runs the callbacks registered on the token, here
    return Outcome::proceed();
  }
  std::string text() const override { return "stop"; }

 private:
  mutable std::stop_source source_;  // request_stop() is safe in any number of threads, but not const
};

class Notify final : public ActionImpl {
 public:
  // All eventfds share one inode, so that the number means the same one later cannot be told: the caller
  // keeps it open.
  explicit Notify(int fd) : fd_(fd) {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0)
      error_ = Error::from_errno(errno, "eventfd " + std::to_string(fd));
    else if ((flags & O_ACCMODE) == O_RDONLY)
      error_ = Error(Errc::invalid_action,
                     "descriptor " + std::to_string(fd) + " cannot be written; an eventfd is needed");
  }
  Outcome run(const ActionContext&) const override {
    const std::uint64_t one = 1;
    const bool told = ::write(fd_, &one, sizeof one) == static_cast<ssize_t>(sizeof one) ||
                      errno == EAGAIN;  // EAGAIN: full of news
    return told ? Outcome::proceed()
                : Outcome::failed(Error::from_errno(errno, "eventfd " + std::to_string(fd_)));
  }
  std::string text() const override { return "notify:" + std::to_string(fd_); }

 private:
  int fd_;
};

}  // namespace

const Error* Action::error() const noexcept { return impl_->error() ? &*impl_->error() : nullptr; }

bool operator==(const Action& a, const Action& b) {
  if (&a.impl() == &b.impl()) return true;
  const std::string text = to_string(a);
  return text.find(':') != std::string::npos && text == to_string(b);  // code is only equal to itself
}

ActionChain::ActionChain(Action action) : ActionChain(std::vector<Action>{std::move(action)}) {}
ActionChain::ActionChain(std::initializer_list<Action> actions) : ActionChain(std::vector<Action>(actions)) {}
ActionChain::ActionChain(std::vector<Action> actions)
    : actions_(std::make_shared<const std::vector<Action>>(std::move(actions))) {
  for (const Action& action : *actions_)
    if (error_ == nullptr) error_ = action.error();
}
const Error* ActionChain::error() const noexcept { return error_; }

Action send_signal(int signal, SignalTarget target) { return make<SendSignal>(signal, target); }
Action kill_process(int signal, pid_t pid) { return make<KillProcess>(signal, pid); }
Action close_fd(int fd) { return make<EndDescriptor>(Ending::close, fd); }
Action shutdown_read(int fd) { return make<EndDescriptor>(Ending::shutdown_read, fd); }
Action shutdown_write(int fd) { return make<EndDescriptor>(Ending::shutdown_write, fd); }
Action shutdown_both(int fd) { return make<EndDescriptor>(Ending::shutdown_both, fd); }
Action close_peer(SocketAddress peer) { return make<EndPeer>(Ending::close, peer); }
Action shutdown_read(SocketAddress peer) { return make<EndPeer>(Ending::shutdown_read, peer); }
Action shutdown_write(SocketAddress peer) { return make<EndPeer>(Ending::shutdown_write, peer); }
Action shutdown_both(SocketAddress peer) { return make<EndPeer>(Ending::shutdown_both, peer); }
Action run(std::vector<std::string> argv) { return make<Program>(Program::How::run, std::move(argv)); }
Action exec(std::vector<std::string> argv) { return make<Program>(Program::How::exec, std::move(argv)); }
Action sleep_for(std::chrono::nanoseconds duration) { return make<Sleep>(duration); }
Action call(std::function<Verdict(const Event&)> function) { return make<Call>(std::move(function)); }
Action call(std::function<void()> function) {
  if (!function) return make<Call>(std::function<Verdict(const Event&)>());
  return make<Call>([inner = std::move(function)](const Event&) {
    inner();
    return Verdict::proceed;
  });
}
Action request_stop(std::stop_source source) { return make<RequestStop>(std::move(source)); }
Action notify(int eventfd) { return make<Notify>(eventfd); }

}  // namespace sockalarm
