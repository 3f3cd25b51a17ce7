// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>
#include <sys/types.h>

#include <chrono>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

// What is between the daemon and its service manager; nothing where there is none.
namespace sockalarm::daemon::service {

// The socket that it listens on already (sd_listen_fds(3)); empty: none was passed.
Result<UniqueFd> passed_listener();

// The file of a socket that this process listens on. Its end takes the file away, unless another's is there
// by now; to end before the socket is closed, since until then no other process takes the path.
class SocketFile {
 public:
  SocketFile() = default;
  explicit SocketFile(std::string path);  // which is there
  SocketFile(SocketFile&& from) noexcept { swap(from); }
  SocketFile& operator=(SocketFile&& from) noexcept {
    SocketFile taken(std::move(from));
    swap(taken);
    return *this;
  }
  SocketFile(const SocketFile&) = delete;
  SocketFile& operator=(const SocketFile&) = delete;
  ~SocketFile();

 private:
  void swap(SocketFile& other) noexcept {
    path_.swap(other.path_);
    inode_.swap(other.inode_);
  }

  std::string path_;  // empty: none
  std::pair<dev_t, ino_t> inode_{};
};

struct Listener {
  UniqueFd fd;
  SocketFile file;  // none if the socket was passed
};

// Listens at that path; what a dead daemon left there is replaced. EADDRINUSE: a daemon is alive there.
Result<Listener> listen_at(const std::string& path, mode_t mode, int type);

// SIGTERM, SIGINT and SIGHUP: to block before there is any thread, and then to read as a descriptor.
void block_signals();
Result<UniqueFd> signals();
int next_signal(const UniqueFd& signals);  // 0: none

// Keeps those of these capabilities that the process has, for good. Of the calling thread and of those that
// it starts then, since Linux has capabilities per thread (capabilities(7)): to call before there is another
// one.
Result<void> drop_privileges(std::initializer_list<unsigned> kept);

void ready(const std::string& status);
void stopping();
void alive();
// How often to say so; empty: nobody listens. Half of what is allowed.
std::optional<std::chrono::milliseconds> watchdog_interval();

// While the configuration is read again.
class Reloading {
 public:
  Reloading();
  ~Reloading();
  Reloading(const Reloading&) = delete;
  Reloading& operator=(const Reloading&) = delete;
};

}  // namespace sockalarm::daemon::service
