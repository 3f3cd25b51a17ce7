// SPDX-License-Identifier: Apache-2.0
#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>

namespace sockalarm::cli {
namespace {

// Other screen, no cursor, no wrapping of lines that the terminal thinks longer than we do.
constexpr std::string_view kEnter = "\x1b[?1049h\x1b[?25l\x1b[?7l", kLeave = "\x1b[?7h\x1b[?25h\x1b[?1049l";
constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGTSTP};

void write_all(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return;  // the terminal has gone; SIGHUP or stdin says so
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

Result<std::unique_ptr<Terminal>> Terminal::take() {
  const char* const kind = std::getenv("TERM");
  if (::isatty(STDOUT_FILENO) == 0 || kind == nullptr || std::string_view(kind) == "dumb") return nullptr;
  std::unique_ptr<Terminal> terminal(new Terminal);
  sigset_t ours;
  ::sigemptyset(&ours);
  for (const int number : kSignals) ::sigaddset(&ours, number);
  ::pthread_sigmask(SIG_BLOCK, &ours, &terminal->blocked_before_);
  terminal->signals_ = UniqueFd(::signalfd(-1, &ours, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!terminal->signals_) return fail(Error::from_errno(errno, "signalfd()"));
  terminal->keys_ = ::isatty(STDIN_FILENO) != 0;
  terminal->waited_for_ = {pollfd{.fd = terminal->signals_.get(), .events = POLLIN, .revents = 0},
                           pollfd{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0}};
  terminal->enter();
  return terminal;
}

Terminal::~Terminal() {
  if (signals_) leave();
  ::pthread_sigmask(SIG_SETMASK, &blocked_before_, nullptr);
}

void Terminal::enter() {
  termios mode{};
  if (keys_ && ::tcgetattr(STDIN_FILENO, &mode) == 0) {
    mode_before_ = mode;
    mode.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    mode.c_cc[VMIN] = 0;  // a read() takes what there is; O_NONBLOCK would be of all who have this terminal
    mode.c_cc[VTIME] = 0;
    ::tcsetattr(STDIN_FILENO, TCSANOW, &mode);
  }
  write_all(kEnter);
}

void Terminal::leave() {
  write_all(kLeave);
  if (mode_before_) ::tcsetattr(STDIN_FILENO, TCSANOW, &*mode_before_);
  mode_before_.reset();
}

Terminal::Size Terminal::size() const {
  winsize is{};
  Size size;
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &is) != 0) return size;
  if (is.ws_col != 0) size.width = is.ws_col;
  if (is.ws_row != 0) size.height = is.ws_row;
  return size;
}

void Terminal::show(const std::string& screen) const { write_all(screen); }

Terminal::News Terminal::news() {
  News news;
  signalfd_siginfo one{};
  while (::read(signals_.get(), &one, sizeof one) == static_cast<ssize_t>(sizeof one)) {
    const int number = static_cast<int>(one.ssi_signo);
    if (number == SIGTSTP) {
      leave();
      ::raise(SIGSTOP);  // until SIGCONT
      enter();
    }
    if (number == SIGTSTP || number == SIGWINCH)
      news.redraw = true;
    else
      news.signal = number;
  }
  if (keys_ && waited_for_[1].revents != 0) read_keys(news);
  return news;
}

void Terminal::read_keys(News& news) const {
  char keys[64];
  const ssize_t count = ::read(STDIN_FILENO, keys, sizeof keys);
  if (count <= 0) {
    news.quit = count == 0 || errno != EINTR;
    return;
  }
  const std::string_view typed(keys, static_cast<std::size_t>(count));
  constexpr char kCtrlL = '\x0c';
  news.quit = typed.find_first_of("qQ") != std::string_view::npos;
  news.redraw = news.redraw || typed.find(kCtrlL) != std::string_view::npos;
}

}  // namespace sockalarm::cli
