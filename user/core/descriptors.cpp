// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sockalarm/diagnostics.h>
#include <sockalarm/unique_fd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "base/text.h"
#include "core/open_descriptors.h"

#if SOCKALARM_LINUX
#include <sys/syscall.h>
#endif

namespace sockalarm {
namespace {

int option(int fd, int level, int name) noexcept {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, level, name, &value, &length) == 0 ? value : -1;
}

std::string kind_of_file(mode_t mode, const std::string& target) {
  if (S_ISREG(mode)) return target.starts_with("/memfd:") ? "memfd" : "file";
  if (S_ISDIR(mode)) return "directory";
  if (S_ISCHR(mode)) return "character device";
  if (S_ISBLK(mode)) return "block device";
  if (S_ISFIFO(mode)) return target.starts_with("pipe:") ? "pipe" : "fifo";
  constexpr std::string_view kAnonymous = "anon_inode:";
  if (!target.starts_with(kAnonymous)) return "other";
  std::string name = target.substr(kAnonymous.size());  // "[eventfd]", "bpf-map"
  std::erase_if(name, [](char c) { return c == '[' || c == ']'; });
  return name;
}

std::string kind_of_socket(int family, int type, [[maybe_unused]] int protocol) {
  if (family == AF_UNIX) {
    if (type == SOCK_STREAM) return "unix-stream";
    return type == SOCK_DGRAM ? "unix-dgram" : "unix-seqpacket";
  }
  if (family == AF_INET || family == AF_INET6) {
    if (protocol == 132) return "sctp";
    if (protocol == 262) return "mptcp";
    if (type == SOCK_STREAM) return "tcp";
    return type == SOCK_DGRAM ? "udp" : "raw";
  }
#if SOCKALARM_LINUX
  if (family == AF_NETLINK) return "netlink";
  if (family == AF_PACKET) return "packet";
  if (family == AF_VSOCK) return "vsock";
#endif
  return "socket of family " + std::to_string(family);
}

using NameOf = int (*)(int, sockaddr*, socklen_t*);
std::optional<SocketAddress> name_of(int fd, NameOf ask) {
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  if (ask(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return std::nullopt;
  return SocketAddress(reinterpret_cast<const sockaddr*>(&name), length);
}

#if SOCKALARM_LINUX
std::string tcp_state(int fd) {
  constexpr std::array<const char*, 13> kStates = {
      "",      "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2",   "TIME_WAIT",
      "CLOSE", "CLOSE_WAIT",  "LAST_ACK", "LISTEN",   "CLOSING",   "NEW_SYN_RECV"};
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0 || info.tcpi_state >= kStates.size())
    return {};
  return kStates[info.tcpi_state];
}
#endif

// What the socket behind `fd` says of itself; `fd` may be a copy of the descriptor that is described.
void describe_socket(int fd, DescriptorInfo& info) {
  info.local = name_of(fd, ::getsockname);
  info.peer = name_of(fd, ::getpeername);
  info.listening = option(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1;
  const int family = info.local ? info.local->family() : AF_UNSPEC;
  int protocol = 0;
#if SOCKALARM_LINUX
  protocol = option(fd, SOL_SOCKET, SO_PROTOCOL);
  socklen_t length = sizeof info.cookie;
  ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &info.cookie, &length);
#endif
  info.kind = kind_of_socket(family, option(fd, SOL_SOCKET, SO_TYPE), protocol);
#if SOCKALARM_LINUX
  if (info.kind == "tcp" || info.kind == "mptcp") info.state = tcp_state(fd);
#endif
}

std::string link_target(const std::filesystem::path& link) {
  std::error_code ignored;
  return std::filesystem::read_symlink(link, ignored).string();
}

UniqueFd open_pidfd([[maybe_unused]] pid_t pid) {
#if SOCKALARM_LINUX
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
#else
  return UniqueFd();
#endif
}

// Sockets of other processes tell nothing through /proc; a copy of the descriptor does.
class OtherProcess {
 public:
  explicit OtherProcess(pid_t pid)
      : directory_("/proc/" + std::to_string(pid) + "/fd"), pidfd_(open_pidfd(pid)) {}

  Result<std::vector<DescriptorInfo>> table() const {
    std::error_code failed;
    std::vector<DescriptorInfo> table;
    for (std::filesystem::directory_iterator entry(directory_, failed), end; !failed && entry != end;
         entry.increment(failed)) {
      const auto fd = parse_number<int>(entry->path().filename().string());
      if (fd) table.push_back(describe(*fd, entry->path()));
    }
    if (failed) return fail(Error::from_errno(failed.value(), directory_.string()));
    std::sort(table.begin(), table.end(), [](const auto& a, const auto& b) { return a.fd < b.fd; });
    return table;
  }

 private:
  DescriptorInfo describe(int fd, const std::filesystem::path& link) const {
    DescriptorInfo info;
    info.fd = fd;
    info.target = link_target(link);
    struct stat status{};
    if (::stat(link.c_str(), &status) != 0) {
      info.kind = "gone";  // closed while we looked
    } else if (!S_ISSOCK(status.st_mode)) {
      info.kind = kind_of_file(status.st_mode, info.target);
    } else {
      info.kind = "socket";
#if SOCKALARM_LINUX
      if (const UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd_.get(), fd, 0))); copy)
        describe_socket(copy.get(), info);
#endif
    }
    return info;
  }

  std::filesystem::path directory_;
  UniqueFd pidfd_;
};

}  // namespace

bool is_socket(int fd) noexcept {
  struct stat status{};
  return ::fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
}

Result<DescriptorInfo> describe_descriptor(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) return fail(Error::from_errno(errno, "descriptor " + std::to_string(fd)));
  DescriptorInfo info;
  info.fd = fd;
#if SOCKALARM_LINUX
  info.target = link_target("/proc/self/fd/" + std::to_string(fd));
#endif
  if (S_ISSOCK(status.st_mode))
    describe_socket(fd, info);
  else
    info.kind = kind_of_file(status.st_mode, info.target);
  return info;
}

Result<std::vector<DescriptorInfo>> descriptor_table(std::optional<pid_t> pid) {
  if (pid && *pid != ::getpid()) return OtherProcess(*pid).table();
  const auto numbers = detail::open_descriptors();
  if (!numbers) return fail(numbers.error());
  std::vector<DescriptorInfo> table;
  for (const int fd : *numbers)
    if (auto info = describe_descriptor(fd)) table.push_back(std::move(*info));  // else closed meanwhile
  return table;
}

std::string to_string(const DescriptorInfo& info) {
  std::string text = std::to_string(info.fd) + ": " + info.kind;
  if (!info.state.empty()) text += " " + info.state;
  if (info.listening) text += info.state == "LISTEN" ? "" : " listening";
  if (info.local) text += " " + to_string(*info.local);
  if (info.peer) text += " <-> " + to_string(*info.peer);
  if (info.cookie != 0) text += " cookie " + std::to_string(info.cookie);
  return info.local ? text : text + " " + escaped(info.target);
}

}  // namespace sockalarm
