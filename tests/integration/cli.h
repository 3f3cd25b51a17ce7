// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "harness/alarms.h"
#include "harness/sockets.h"

// The command line tool as users run it. SOCKALARM_CLI_PATH is the executable.
namespace sockalarm::test {

// A file in memory that programs write to and the test reads. Appending and fstat(2), because nothing guards
// the common offset of a memfd: an lseek() beside a write() sets it back, and the next line overwrites the
// last (seen on Linux 6.18).
class Output {
 public:
  Output() : fd_(::memfd_create("output", MFD_CLOEXEC)) {
    EXPECT_EQ(::fcntl(fd_.get(), F_SETFL, O_APPEND), 0);
  }
  int fd() const { return fd_.get(); }
  std::string text() const {
    struct stat status{};
    EXPECT_EQ(::fstat(fd_.get(), &status), 0);
    std::string all(static_cast<std::size_t>(status.st_size), ' ');
    EXPECT_EQ(::pread(fd_.get(), all.data(), all.size(), 0), static_cast<ssize_t>(all.size()));
    return all;
  }

 private:
  UniqueFd fd_;
};

struct Ended {
  int status = -1;
  std::string errors;
};

// A program with a socket, or what else, as its stdin and stdout and its stderr in a file.
class Process {
 public:
  using Preparation = std::function<void()>;  // in the child, before the program is executed

  Process(std::vector<std::string> argv, int in, int out, const Preparation& prepare = [] {}) {
    std::vector<char*> words;
    for (std::string& word : argv) words.push_back(word.data());
    words.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(in, 0);
      ::dup2(out, 1);
      ::dup2(errors_.fd(), 2);
      prepare();
      ::execvp(words[0], words.data());
      ::_exit(99);
    }
  }
  ~Process() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  Ended wait() {
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), errors()};
  }
  std::string errors() const { return errors_.text(); }

 private:
  Output errors_;
  pid_t pid_ = -1;
};

inline UniqueFd null() { return UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)); }

inline std::vector<std::string> cli(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), SOCKALARM_CLI_PATH);
  return arguments;
}

inline Ended run_cli(std::vector<std::string> arguments) {
  const UniqueFd nothing = null();
  return Process(cli(std::move(arguments)), nothing.get(), nothing.get()).wait();
}

// `sockalarm run` with a client at its stdin and stdout, as inetd starts it. The command must write "ready"
// first.
class Served {
 public:
  explicit Served(
      std::vector<std::string> arguments, bool wait_until_ready = true,
      const Process::Preparation& prepare = [] {})
      : connection_(tcp_pair()) {
    arguments.insert(arguments.begin(), "run");
    process_.emplace(cli(std::move(arguments)), connection_.ours.get(), connection_.ours.get(), prepare);
    connection_.ours.reset();
    if (wait_until_ready) await("ready");
  }
  void await(const std::string& word) {
    std::string text;
    char byte = 0;
    while (text.find(word) == std::string::npos && ::recv(connection_.peer.get(), &byte, 1, 0) == 1)
      text += byte;
    EXPECT_NE(text.find(word), std::string::npos)
        << "the command wrote '" << text << "'; " << process_->errors();
    rest_ = text;
  }
  const std::string& heard() const { return rest_; }
  void client_leaves() { connection_.peer.reset(); }
  Connection& connection() { return connection_; }
  Process& process() { return *process_; }
  Ended wait() { return process_->wait(); }

 private:
  Connection connection_;
  std::string rest_;
  std::optional<Process> process_;
};

// Writes its process id, and the program can then be asked for.
inline const std::string kReport = "echo pid $$ ready; ";
inline pid_t reported_pid(const std::string& text) { return std::stoi(text.substr(text.find("pid ") + 4)); }
inline bool alive(pid_t pid) { return ::kill(pid, 0) == 0; }

// A name of the test's own, and nothing left there afterwards.
class TemporaryPath {
 public:
  explicit TemporaryPath(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("sockalarm-" + name + "-" + std::to_string(::getpid()))) {}
  ~TemporaryPath() { std::filesystem::remove_all(path_); }
  TemporaryPath(const TemporaryPath&) = delete;
  TemporaryPath& operator=(const TemporaryPath&) = delete;
  std::string text() const { return path_.string(); }
  bool exists() const { return std::filesystem::exists(path_); }
  std::string content() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  std::filesystem::path path_;
};

inline std::string output_of(const std::string& command) {
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "re");
  std::string output;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) output += static_cast<char>(c);
  EXPECT_EQ(::pclose(pipe), 0) << command << ": " << output;
  return output;
}
inline const std::string kCli = SOCKALARM_CLI_PATH;

}  // namespace sockalarm::test
