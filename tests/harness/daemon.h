// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "harness/sockets.h"

namespace sockalarm::test {

inline constexpr uid_t kNobody = 65534;

// A child. kill(2) returns before it stands still.
inline void stop_process(pid_t pid) {
  ::kill(pid, SIGSTOP);
  require(::waitpid(pid, nullptr, WUNTRACED) == pid, "waitpid");
}

// A directory with a BPF file system, in a mount namespace of this process: both go with its last process,
// however it ends. Once per process, before there are threads.
class DaemonHome {
 public:
  DaemonHome() {
    require(::unshare(CLONE_NEWNS) == 0, "unshare(CLONE_NEWNS)");
    require(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "mount(MS_PRIVATE)");
    std::string name = std::filesystem::temp_directory_path() / "sockalarm-daemon-XXXXXX";
    require(::mkdtemp(name.data()) != nullptr, "mkdtemp");
    directory_ = name;
    ::chmod(name.c_str(), 0755);  // clients of any user come in
    require(::mkdir(mounted().c_str(), 0700) == 0, "mkdir");
    require(::mount("bpf", mounted().c_str(), "bpf", 0, nullptr) == 0, "mount -t bpf");
  }
  ~DaemonHome() {
    ::umount2(mounted().c_str(), MNT_DETACH);
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  DaemonHome(const DaemonHome&) = delete;
  DaemonHome& operator=(const DaemonHome&) = delete;

  std::string bpffs() const { return mounted() + "/pins"; }  // made by the daemon
  std::string socket() const { return directory_ + "/sock"; }
  std::string file(const std::string& name) const { return directory_ + "/" + name; }

 private:
  std::string mounted() const { return directory_ + "/bpf"; }

  std::string directory_;
};

// What a service manager gives its service.
struct ServiceSettings {
  std::vector<std::pair<std::string, std::string>> environment;
  int listener = -1;  // descriptor 3 there, and announced as sd_listen_fds(3) says
  int errors = -1;    // its stderr; -1: ours
  std::string log_level = "error";
};

// sockalarmd as a child process.
class DaemonProcess {
 public:
  explicit DaemonProcess(const DaemonHome& home, const std::vector<std::string>& further = {},
                         const std::string& socket = {}, ServiceSettings settings = {})
      : settings_(std::move(settings)) {
    std::vector<std::string> words = {SOCKALARMD_PATH,
                                      "--socket",
                                      socket.empty() ? home.socket() : socket,
                                      "--bpffs",
                                      home.bpffs(),
                                      "--log-level",
                                      level(settings_.log_level)};
    words.insert(words.end(), further.begin(), further.end());
    start(words, home.file("notify"));
  }
  ~DaemonProcess() { kill(); }
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  pid_t pid() const { return pid_; }
  bool running() const { return pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) == 0; }
  void signal(int number) const { ::kill(pid_, number); }
  void pause() const { stop_process(pid_); }
  // Whether it says so by sd_notify(3), now or within 20 s; counts what it said since the last call.
  bool tells(const std::string& words) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (;;) {
      if (const auto at = told_.find(words); at != std::string::npos) {
        told_.erase(0, at + words.size());
        return true;
      }
      if (std::chrono::steady_clock::now() > until) return false;
      hear();
    }
  }
  // As the out-of-memory killer does.
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  // As the service manager does; its exit status.
  int stop() {
    ::kill(pid_, SIGTERM);
    int status = -1;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return status;
  }

 private:
  static std::string level(const std::string& otherwise) {
    const char* const wanted = std::getenv("SOCKALARM_TEST_DAEMON_LOG");
    return wanted != nullptr ? wanted : otherwise;
  }

  // Returns when it says that it is ready, by sd_notify(3).
  void start(const std::vector<std::string>& words, const std::string& notify) {
    ::unlink(notify.c_str());
    notify_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    notify.copy(address.sun_path, sizeof address.sun_path - 1);
    require(::bind(notify_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "bind");
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    pid_ = ::fork();
    require(pid_ >= 0, "fork");
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that is killed leaves no daemon behind
      ::setenv("NOTIFY_SOCKET", notify.c_str(), 1);
      for (const auto& [name, value] : settings_.environment) ::setenv(name.c_str(), value.c_str(), 1);
      if (settings_.errors >= 0) ::dup2(settings_.errors, STDERR_FILENO);
      if (settings_.listener >= 0) {
        if (settings_.listener == 3)
          ::fcntl(3, F_SETFD, 0);
        else
          ::dup2(settings_.listener, 3);
        ::setenv("LISTEN_FDS", "1", 1);
        ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
      }
      ::execv(arguments.front(), arguments.data());
      ::_exit(127);
    }
    while (told_.find("READY=1") == std::string::npos)
      if (!hear() && ::waitpid(pid_, nullptr, WNOHANG) != 0) {
        pid_ = 0;
        throw std::runtime_error("sockalarmd has ended instead of getting ready");
      }
  }
  bool hear() {
    pollfd entry{notify_.get(), POLLIN, 0};
    require(::poll(&entry, 1, 30) >= 0, "poll");
    char text[256];
    const ssize_t n = ::recv(notify_.get(), text, sizeof text, MSG_DONTWAIT);
    if (n > 0) told_.append(text, static_cast<std::size_t>(n)).append("\n");
    return n > 0;
  }

  const ServiceSettings settings_;
  UniqueFd notify_;
  std::string told_;
  pid_t pid_ = 0;
};

inline bool become(uid_t user) {
  return ::setgroups(0, nullptr) == 0 && ::setresgid(user, user, user) == 0 &&
         ::setresuid(user, user, user) == 0;
}

}  // namespace sockalarm::test
