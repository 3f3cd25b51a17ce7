// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness/alarms.h"
#include "harness/folder.h"
#include "harness/ports.h"
#include "harness/sockets.h"

// Real servers that a test starts for itself: without privileges, in a folder of their own, in the
// foreground.
namespace sockalarm::test {

// Whom servers run as when the test runs as root, for databases refuse root.
inline const passwd& server_user() {
  static const passwd* const nobody = ::getpwnam("nobody");
  if (nobody == nullptr) throw std::runtime_error("there is no user 'nobody'");
  return *nobody;
}

// Belongs to that user.
class ServerFolder : public Folder {
 public:
  ServerFolder() {
    if (::geteuid() == 0)
      require(::chown(text().c_str(), server_user().pw_uid, server_user().pw_gid) == 0, "chown");
  }
  void write(const std::string& name, const std::string& content) const {
    write_contents(*this / name, content);
  }
  std::string read(const std::string& name) const { return contents(*this / name); }
};

// A program, without privileges unless it is to have the test's; stdin comes from `input`, stdout and stderr
// go to NAME.log in the folder.
class ServerProcess {
 public:
  enum class As { server_user, tester };

  ServerProcess(const ServerFolder& folder, const std::string& name, std::vector<std::string> argv,
                const std::string& input = "/dev/null", As as = As::server_user)
      : log_(folder / (name + ".log")) {
    std::vector<char*> words;
    for (std::string& word : argv) words.push_back(word.data());
    words.push_back(nullptr);
    const UniqueFd in(::open(input.c_str(), O_RDONLY | O_CLOEXEC));
    const UniqueFd out(::open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    require(in && out, "the server's files");
    const passwd& user = server_user();
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    require(pid_ >= 0, "fork");
    if (pid_ > 0) return;
    ::dup2(in.get(), 0);
    ::dup2(out.get(), 1);
    ::dup2(out.get(), 2);
    if (as == As::server_user && ::geteuid() == 0 &&
        (::setgroups(0, nullptr) != 0 || ::setgid(user.pw_gid) != 0 || ::setuid(user.pw_uid) != 0 ||
         ::chdir(folder.text().c_str()) != 0))
      ::_exit(98);
    ::prctl(PR_SET_PDEATHSIG,
            SIGQUIT);  // a test that dies leaves no server; after setuid(2), which clears it
    if (::getppid() != parent) ::_exit(97);
    ::execvp(words[0], words.data());
    ::_exit(99);
  }
  ~ServerProcess() { stop(SIGTERM); }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& log() const { return log_; }
  void send(int signal) const { ::kill(pid_, signal); }
  // Its exit status; 128 and more: the signal that ended it.
  int wait() {
    if (pid_ <= 0) return status_;
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  bool ended() {
    int status = 0;
    if (pid_ > 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return pid_ <= 0;
  }
  void stop(int signal) {
    if (pid_ <= 0) return;
    send(signal);
    if (eventually([&] { return ended(); })) return;
    ADD_FAILURE() << "a server did not end: " << log_;
    send(SIGKILL);
    wait();
  }

 private:
  const std::string log_;
  pid_t pid_ = -1;
  int status_ = -1;
};

// Runs it to its end.
inline void run_to_end(const ServerFolder& folder, const std::string& name, std::vector<std::string> argv,
                       const std::string& input = "/dev/null") {
  ServerProcess process(folder, name, std::move(argv), input);
  if (const int status = process.wait(); status != 0)
    throw std::runtime_error(name + " ended with " + std::to_string(status) + ": " +
                             folder.read(name + ".log"));
}

}  // namespace sockalarm::test
