// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>
#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <vector>

// sendmsg(2) and recvmsg(2) with SCM_RIGHTS on connected AF_UNIX sockets of any type. Neither ever blocks,
// whatever the socket's own mode is, raises SIGPIPE, or leaks: what was received is owned, close-on-exec.
namespace sockalarm::ipc {

// SCM_MAX_FD of include/net/scm.h: more in one sendmsg(2) is EINVAL.
inline constexpr std::size_t kMaxFdsPerSend = 253;

// The kernel duplicates the descriptors; the caller's stay the caller's. Returns how many bytes went: on a
// stream maybe fewer than given, and all descriptors with the first of them; on SOCK_SEQPACKET all.
// Descriptors need at least one byte to ride on. Errors: errno; with would_block() later again.
Result<std::size_t> send_with_fds(int socket, std::span<const iovec> bytes, std::span<const int> fds);
Result<std::size_t> send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds);

struct Received {
  std::size_t size = 0;         // 0: the peer has ended its side (or sent an empty SOCK_SEQPACKET message)
  std::vector<UniqueFd> fds;    // in the order of sending
  bool fds_truncated = false;   // some are missing: more than `max_fds`, or this process' table is full
  bool data_truncated = false;  // SOCK_SEQPACKET: the message was longer than the buffer; the rest is gone
};

enum class Take {
  consume,
  peek,  // Linux: the message stays, and its descriptors are installed all the same, one more time. So
         // nothing is lost when they do not all fit. Elsewhere the descriptors of a peek are not to be had
};

// One read: on a stream at most one sender's batch of descriptors, and the bytes up to it and with it.
// Errors: errno; with would_block() there is nothing to read.
Result<Received> receive_with_fds(int socket, std::span<std::byte> buffer, std::size_t max_fds,
                                  Take take = Take::consume);

// EAGAIN: a full buffer, or nothing there.
bool would_block(const Error& error) noexcept;
// Full tables and buffers that may have room later: EAGAIN, ENOBUFS, ENOMEM, EMFILE, ENFILE, and ETOOMANYREFS
// (unix(7): the user has more descriptors in flight than RLIMIT_NOFILE).
bool is_temporary(const Error& error) noexcept;

}  // namespace sockalarm::ipc
