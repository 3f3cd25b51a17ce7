// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>
#include <sys/types.h>

#include <cstdint>

namespace sockalarm::daemon {

// Who is at the other end, as the kernel says: the process that connected, whoever has the socket now.
struct Peer {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;              // 0: in a pid namespace that is not ours or below
  std::uint64_t started = 0;  // proc_pid_stat(5), field 22; 0: not known
  UniqueFd process;           // a pidfd, readable when it has ended; may be empty
};

Result<Peer> peer_of(int socket);
// That very process, if it lives: a pidfd.
UniqueFd find_process(pid_t pid, std::uint64_t started);
bool has_ended(const UniqueFd& process) noexcept;
// Whether process numbers here are those of the whole host.
bool in_initial_pid_namespace() noexcept;

}  // namespace sockalarm::daemon
