// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/address.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace sockalarm {

// One thing that this kernel, this process's privileges or this build gives or does not give.
struct Feature {
  std::string name;
  bool available = false;
  std::string detail;  // what was found, or the exact reason why not
  std::string remedy;  // what to do about it; empty when available
};

// Looks at the machine; loads and unloads the BPF programs if it may. Tens of milliseconds. Any thread.
std::vector<Feature> probe_features();

// What sockalarmd says of itself, as JSON (docs/protocol.md): everything for root and its own user, else what
// is the caller's. Errors: errno of connecting (ENOENT: no daemon), ETIMEDOUT after 5 s. Any thread.
[[nodiscard]] Result<std::string> daemon_status(const std::string& socket = "/run/sockalarm/sockalarmd.sock");

// One open descriptor, in facts. Fields that do not apply are empty.
struct DescriptorInfo {
  int fd = -1;
  std::string kind;    // "file", "pipe", "tcp", "udp", "unix-stream", "eventfd", ...
  std::string target;  // path or /proc/PID/fd link, as it is: file names may hold any byte
  std::optional<SocketAddress> local, peer;
  std::string state;  // TCP state name
  std::uint64_t cookie = 0;
  bool listening = false;
};

bool is_socket(int fd) noexcept;
// One descriptor of this process. errno (EBADF) if it is not open.
[[nodiscard]] Result<DescriptorInfo> describe_descriptor(int fd);
// All of this process, or of another one: sockets by pidfd_getfd(2) (Linux 5.6), which needs the right to
// ptrace it; without it their addresses stay empty. ESRCH, EACCES.
[[nodiscard]] Result<std::vector<DescriptorInfo>> descriptor_table(std::optional<pid_t> pid = std::nullopt);
// One line for people. In names a backslash and what is not printable UTF-8 are written \xHH, byte by byte.
std::string to_string(const DescriptorInfo& info);

}  // namespace sockalarm
